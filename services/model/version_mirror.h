// Keeps the newest versions of a version source (v1.VersionSource, which shard 0 of a training job hosts) in the local
// repository, so that a model service needs no disk that the trainer writes to. The version loader finds them there as
// it finds versions that anybody else puts there, and verifies them as strictly.
//
// A version comes file by file in pieces of 1 MiB; a piece that is lost is asked for again where the file stopped. It
// is written under a name that starts with '.', every file is checked against the digest in its manifest, the manifest
// against the source's listing, and only then does the version get its name. A source that is away is asked again for
// ever; what is here stays. Pinned versions are kept beside the newest, and stay even if the source has lost them.
//
// Metrics: millrace_model_source_up, millrace_model_source_fetches_total{result}, millrace_model_source_bytes_total.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/backoff.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/metrics.h"
#include "common/model/manifest.h"
#include "common/mutex.h"
#include "grpcpp/client_context.h"
#include "millrace/v1/version_source.grpc.pb.h"
#include "services/model/mirror_plan.h"

namespace millrace {

// Threads: everything happens on one thread between Start and Stop, or on the caller's in PollOnce; never both at once.
// status() and Stop: any.
class VersionMirror {
 public:
  static constexpr uint32_t kKeptMin = 3;  // one that serves, one to go back to, one that comes
  struct Options {
    std::string source;  // HOST:PORT or unix:/path
    std::filesystem::path repository;
    absl::Duration poll_interval;
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
    uint32_t keep = kKeptMin;                                         // newest versions that are kept here
    // Of whichever model: the source says only with its listing which one it has. Called on the mirror's thread.
    std::function<std::vector<uint64_t>()> pins = nullptr;
  };

  // `metrics` and `clock` must outlive the mirror.
  VersionMirror(Options options, Metrics& metrics, const Clock& clock);
  // Stops.
  ~VersionMirror();
  VersionMirror(const VersionMirror&) = delete;
  VersionMirror& operator=(const VersionMirror&) = delete;

  void Start();
  // Gives up a call that waits for the source.
  void Stop();

  // Asks the source once and fetches at most one version. True if it tried to: there may be more to do.
  bool PollOnce();

  // How the last listing went, else why the newest version that could not be fetched is missing.
  absl::Status status() const;

 private:
  struct Failure {
    absl::Status status;
    absl::Time retry_at;
    Backoff backoff;
  };

  void Run();
  void Note(const absl::Status& status);
  std::vector<uint64_t> Pins() const;
  absl::StatusOr<v1::ListExportedVersionsResponse> List();
  std::vector<MirroredVersion> Local(const std::string& model) const;
  void FetchNext(const std::string& model, const MirroredVersion& version);
  absl::Status Fetch(const std::string& model, const MirroredVersion& version);
  absl::StatusOr<ServableManifest> FetchManifest(const std::string& model, const MirroredVersion& version,
                                                 const std::filesystem::path& directory);
  absl::Status FetchFile(uint64_t version, const ManifestFile& file, const std::filesystem::path& directory);
  // The next piece of a file, asked for again while the source is away for a moment.
  absl::StatusOr<std::string> ReadPiece(uint64_t version, const std::string& file, uint64_t offset);
  // One call, which Stop can cancel.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::VersionSource::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                Response*),
                                const Request& request);
  // False if the mirror is to stop.
  bool Sleep(absl::Duration time);

  const Options options_;
  const Clock& clock_;
  const std::unique_ptr<v1::VersionSource::Stub> stub_;
  prometheus::Gauge& up_;
  prometheus::Counter& fetched_;
  prometheus::Counter& failed_;
  prometheus::Counter& bytes_;

  // Of the mirror's thread.
  std::map<uint64_t, Failure> failures_;  // by version, of those that the source lists

  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // under way
  absl::Status status_ ABSL_GUARDED_BY(mutex_) = absl::UnknownError("the source has not been asked yet");

  std::thread thread_;
};

}  // namespace millrace
