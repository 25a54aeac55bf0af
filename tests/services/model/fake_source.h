// A source of versions in memory, and what may go wrong on their way. Their manifests are whole; what the files hold is
// the test's affair.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "common/model/manifest.h"
#include "common/mutex.h"
#include "millrace/v1/version_source.grpc.pb.h"

namespace millrace {

inline constexpr size_t kPieceBytes = 1000;

inline std::string ManifestOf(uint64_t version, const std::map<std::string, std::string>& files) {
  ServableManifest manifest;
  manifest.model = "mnist";
  manifest.version = version;
  manifest.architecture = "cnn";
  manifest.channels = manifest.height = manifest.width = 1;
  manifest.classes = 1;
  manifest.golden = {1, {1.0f}};
  for (const auto& [name, contents] : files) manifest.files.push_back({name, contents.size(), Sha256Hex(contents)});
  return ManifestToJson(manifest);
}

struct SourceState {
  void Publish(uint64_t version, const std::string& model_pt) {
    std::map<std::string, std::string> files = {{"model.pt", model_pt}, {"config.pbtxt", "name: \"mnist\""}};
    files["manifest.json"] = ManifestOf(version, files);
    versions[version] = std::move(files);
  }

  std::string model = "mnist";
  std::map<uint64_t, std::map<std::string, std::string>> versions;
  std::vector<std::string> reads;
  uint64_t unavailable_at = UINT64_MAX;
  int unavailable_times = 0;
  std::string signature;  // of every version
  uint64_t flip = 0;      // of this version a bit on the wire
  uint64_t truncate = 0;  // this version's model
};

class FakeSource : public v1::VersionSource::Service {
 public:
  // Locked to the end of the expression.
  class Access {
   public:
    explicit Access(FakeSource& source) : lock_(&source.mutex_), state_(source.state_) {}
    SourceState* operator->() { return &state_; }

   private:
    MutexLock lock_;
    SourceState& state_;
  };
  Access operator->() { return Access(*this); }

  grpc::Status ListExportedVersions(grpc::ServerContext*, const v1::ListExportedVersionsRequest* request,
                                    v1::ListExportedVersionsResponse* response) override {
    MutexLock lock(&mutex_);
    response->set_model(state_.model);
    for (auto it = state_.versions.rbegin(); it != state_.versions.rend(); ++it) {
      const bool asked_for = std::ranges::find(request->besides(), it->first) != request->besides().end();
      if (static_cast<uint32_t>(response->versions_size()) >= request->newest() && !asked_for) continue;
      v1::ExportedVersion& version = *response->add_versions();
      version.set_version(it->first);
      version.set_manifest_sha256(Sha256Hex(it->second.at("manifest.json")));
      version.set_signature(state_.signature);
    }
    return grpc::Status::OK;
  }
  grpc::Status ReadExportedFile(grpc::ServerContext*, const v1::ReadExportedFileRequest* request,
                                v1::ReadExportedFileResponse* response) override {
    MutexLock lock(&mutex_);
    state_.reads.push_back(absl::StrCat(request->version(), "/", request->file(), "@", request->offset()));
    if (request->offset() == state_.unavailable_at && state_.unavailable_times-- > 0) {
      return {grpc::StatusCode::UNAVAILABLE, "the network is away"};
    }
    std::string data =
        state_.versions.at(request->version()).at(request->file()).substr(request->offset(), kPieceBytes);
    if (request->file() == "model.pt" && !data.empty()) {
      if (state_.flip == request->version()) data[0] ^= 1;
      if (state_.truncate == request->version()) data.clear();
    }
    response->set_data(data);
    return grpc::Status::OK;
  }

 private:
  Mutex mutex_;
  SourceState state_;
};

}  // namespace millrace
