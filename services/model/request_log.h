// A sample of the requests that a model service answers, as lines of JSON in a file of bounded size.
//
// Each line is one request:
//   time         RFC 3339, UTC, when it was answered
//   peer         who asked, by address: "ipv4:10.0.0.7:53412", over HTTP "10.0.0.7:53412"; "unix:" of a socket
//   model, version, step, digest    of what answered
//   rows, batch_rows                of the request; of the batch in which it was computed
//   label, confidence               of its first row: the most probable class, and how probable. null: none
//   queue_us, compute_us            as in PredictResponse
//   status       the gRPC code's name
// Neither pixels nor credentials are written.
//
// Metric: millrace_model_request_log_records_total{result}: written; dropped, because the disk was slower than the
// requests; failed, because it refused them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"
#include "services/model/sampler.h"

namespace millrace {

struct RequestRecord {
  absl::Time time;
  std::string peer;
  std::string model;
  uint64_t version = 0;
  uint64_t step = 0;
  std::string digest;
  uint32_t rows = 0;
  uint32_t batch_rows = 0;
  bool labelled = false;  // whether the next two are known
  uint32_t label = 0;
  float confidence = 0;
  absl::Duration queue;
  absl::Duration compute;
  absl::StatusCode status = absl::StatusCode::kOk;
};
// With the newline. Pure.
std::string FormatRequestRecord(const RequestRecord& record);

// Threads: any. Observe takes a lock for the time of a move, for a request of the sample only; files are written by a
// thread of the log's own, and no error or slowness of theirs reaches the caller.
class RequestLog {
 public:
  static constexpr size_t kQueueMax = 1024;                        // records; more are dropped
  static constexpr absl::Duration kRetryAfter = absl::Seconds(5);  // after a failure of the disk
  static constexpr uint64_t kBytesMaxLeast = uint64_t{64} << 10;

  struct Options {
    std::filesystem::path file;  // its directory must be there. Full, it becomes FILE.1, and so what an earlier process
                                 // has left; the FILE.1 before is lost
    double sample = 0.01;        // of the requests, (0, 1]
    uint64_t bytes_max = uint64_t{64} << 20;  // of both files together, at least kBytesMaxLeast
  };
  // INVALID_ARGUMENT for an option out of range; the file system's error if the file cannot be made now.
  static absl::StatusOr<std::unique_ptr<RequestLog>> Create(Options options, Metrics& metrics, const Clock& clock,
                                                            FileSystem& files = RealFileSystem());
  // Writes what waits.
  ~RequestLog();
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  // An answered request; `answer` counts if `fault` is OK.
  void Observe(const LoadedVersion& version, const InferenceRequest& request, const absl::Status& fault,
               const InferenceAnswer& answer);
  void Write(RequestRecord record);

 private:
  RequestLog(Options options, Metrics& metrics, const Clock& clock, FileSystem& files);

  absl::Status Rotate();
  void Run();
  void WriteAll(const std::vector<RequestRecord>& records);
  absl::Status WriteLine(const std::string& line);

  const Options options_;
  const Clock& clock_;
  FileSystem& files_;
  Sampler sampler_;
  prometheus::Counter& written_;
  prometheus::Counter& dropped_;
  prometheus::Counter& failed_;

  // Of the log's thread.
  std::unique_ptr<FileSystem::Writer> writer_;  // null after a failure
  uint64_t bytes_ = 0;                          // written to it
  absl::Time retry_at_ = absl::InfinitePast();

  Mutex mutex_;
  CondVar changed_;
  std::vector<RequestRecord> queue_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace millrace
