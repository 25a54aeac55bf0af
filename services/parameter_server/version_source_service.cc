#include "services/parameter_server/version_source_service.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/grpc_status.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/model/manifest.h"
#include "common/signing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

VersionSourceService::VersionSourceService(std::filesystem::path root, std::string model)
    : model_(std::move(model)), directory_(std::move(root) / model_) {}

grpc::ServerUnaryReactor* VersionSourceService::ListExportedVersions(grpc::CallbackServerContext* context,
                                                                     const v1::ListExportedVersionsRequest* request,
                                                                     v1::ListExportedVersionsResponse* response) {
  return Finish(context, List(*request, *response));
}

absl::Status VersionSourceService::List(const v1::ListExportedVersionsRequest& request,
                                        v1::ListExportedVersionsResponse& response) const {
  const uint32_t newest = request.newest();
  if (newest == 0 || newest > kExportedVersionsMax) {
    return absl::InvalidArgumentError(absl::StrCat("newest ", newest, " is not in [1, ", kExportedVersionsMax, "]"));
  }
  if (request.besides_size() > static_cast<int>(kExportedVersionsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("besides names ", request.besides_size(), " versions; the limit is ", kExportedVersionsMax));
  }
  response.set_model(model_);
  for (uint64_t version : NumberedEntries(directory_)) {
    const bool besides = response.versions_size() >= static_cast<int>(newest);
    if (besides && std::ranges::find(request.besides(), version) == request.besides().end()) continue;
    const std::filesystem::path directory = directory_ / absl::StrCat(version);
    const auto manifest = ReadFile(directory / kManifestFile, kManifestBytesMax);
    if (absl::IsNotFound(manifest.status())) continue;  // being written, or removed meanwhile
    if (besides && !manifest.ok()) continue;  // it would keep all newer ones away for as long as it is asked for
    MILLRACE_RETURN_IF_ERROR(manifest.status());
    v1::ExportedVersion& exported = *response.add_versions();
    exported.set_version(version);
    exported.set_manifest_sha256(Sha256Hex(*manifest));
    exported.set_signature(ReadFile(directory / kSignatureFile, kSignatureBytesMax).value_or(""));
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* VersionSourceService::ReadExportedFile(grpc::CallbackServerContext* context,
                                                                 const v1::ReadExportedFileRequest* request,
                                                                 v1::ReadExportedFileResponse* response) {
  absl::StatusOr<std::string> data = Read(*request);
  if (data.ok()) response->set_data(*std::move(data));
  return Finish(context, data.status());
}

absl::StatusOr<std::string> VersionSourceService::Read(const v1::ReadExportedFileRequest& request) const {
  if (!IsPlainFileName(request.file())) {
    return absl::InvalidArgumentError(absl::StrCat("\"", request.file(), "\" is not a plain file name"));
  }
  const std::filesystem::path path = directory_ / absl::StrCat(request.version()) / request.file();
  const auto failed = [&path] { return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path.string())); };
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return failed();
  file.seekg(static_cast<std::streamoff>(request.offset()));
  std::string data(kPieceBytes, '\0');
  file.read(data.data(), static_cast<std::streamsize>(data.size()));
  if (file.bad()) return failed();
  data.resize(static_cast<size_t>(file.gcount()));
  return data;
}

}  // namespace millrace
