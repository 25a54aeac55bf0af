#include "services/model/request_log.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

std::filesystem::path OldFile(const std::filesystem::path& file) { return file.string() + ".1"; }

prometheus::Family<prometheus::Counter>& Records(Metrics& metrics) {
  return prometheus::BuildCounter()
      .Name("millrace_model_request_log_records_total")
      .Help("Requests of the sample, by what became of their record.")
      .Register(*metrics.registry());
}

}  // namespace

std::string FormatRequestRecord(const RequestRecord& record) {
  using Json = nlohmann::ordered_json;
  const Json json = {
      {"time", absl::FormatTime(absl::RFC3339_full, record.time, absl::UTCTimeZone())},
      {"peer", record.peer},
      {"model", record.model},
      {"version", record.version},
      {"step", record.step},
      {"digest", record.digest},
      {"rows", record.rows},
      {"batch_rows", record.batch_rows},
      {"label", record.labelled ? Json(record.label) : Json(nullptr)},
      {"confidence", record.labelled ? Json(record.confidence) : Json(nullptr)},
      {"queue_us", absl::ToInt64Microseconds(record.queue)},
      {"compute_us", absl::ToInt64Microseconds(record.compute)},
      {"status", absl::StatusCodeToString(record.status)},
  };
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<std::unique_ptr<RequestLog>> RequestLog::Create(Options options, Metrics& metrics, const Clock& clock,
                                                               FileSystem& files) {
  if (!(options.sample > 0 && options.sample <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--request-log-sample must be in (0, 1], is ", options.sample));
  }
  if (options.bytes_max < kBytesMaxLeast) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-log-max-bytes must be at least ", kBytesMaxLeast, ", is ", options.bytes_max));
  }
  std::unique_ptr<RequestLog> log(new RequestLog(std::move(options), metrics, clock, files));
  const absl::Status file = log->Rotate();
  if (!file.ok()) return absl::Status(file.code(), absl::StrCat("--request-log: ", file.message()));
  log->thread_ = std::thread([it = log.get()] { it->Run(); });
  return log;
}

RequestLog::RequestLog(Options options, Metrics& metrics, const Clock& clock, FileSystem& files)
    : options_(std::move(options)),
      clock_(clock),
      files_(files),
      sampler_(options_.sample),
      written_(Records(metrics).Add({{"result", "written"}})),
      dropped_(Records(metrics).Add({{"result", "dropped"}})),
      failed_(Records(metrics).Add({{"result", "failed"}})) {}

RequestLog::~RequestLog() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.Signal();
  }
  if (thread_.joinable()) thread_.join();
}

void RequestLog::Observe(const LoadedVersion& version, const InferenceRequest& request, const absl::Status& fault,
                         const InferenceAnswer& answer) {
  if (!sampler_.Take()) return;
  const ModelInfo& info = version.info();
  RequestRecord record{.time = clock_.Now(),
                       .peer = request.peer ? request.peer() : "",
                       .model = info.model,
                       .version = info.version,
                       .step = info.step,
                       .digest = info.digest,
                       .rows = request.rows,
                       .batch_rows = answer.batch_rows,
                       .queue = answer.queue,
                       .compute = answer.compute,
                       .status = fault.code()};
  if (fault.ok() && info.classes > 0) {
    const auto row = std::span(answer.values).first(info.classes);
    const auto best = std::ranges::max_element(row);
    record.labelled = true;
    record.label = static_cast<uint32_t>(best - row.begin());
    record.confidence = *best;
  }
  Write(std::move(record));
}

void RequestLog::Write(RequestRecord record) {
  MutexLock lock(&mutex_);
  if (queue_.size() >= kQueueMax) return dropped_.Increment();
  queue_.push_back(std::move(record));
  if (queue_.size() == 1) changed_.Signal();
}

void RequestLog::Run() {
  std::vector<RequestRecord> records;
  for (;;) {
    bool stop = false;
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !stop_) changed_.Wait(&mutex_);
      records.clear();
      records.swap(queue_);
      stop = stop_;
    }
    WriteAll(records);
    if (stop) return;
  }
}

void RequestLog::WriteAll(const std::vector<RequestRecord>& records) {
  if (writer_ == nullptr && clock_.Now() < retry_at_) {
    return failed_.Increment(static_cast<double>(records.size()));
  }
  for (size_t i = 0; i < records.size(); ++i) {
    const absl::Status status = WriteLine(FormatRequestRecord(records[i]));
    if (status.ok()) {
      written_.Increment();
      continue;
    }
    // What the file holds of the line is no line; the next one begins another file.
    writer_.reset();
    retry_at_ = clock_.Now() + kRetryAfter;
    failed_.Increment(static_cast<double>(records.size() - i));
    LogWarning("cannot write the request log; requests are answered all the same", {{"error", status}});
    return;
  }
}

absl::Status RequestLog::WriteLine(const std::string& line) {
  if (writer_ == nullptr || bytes_ + line.size() > options_.bytes_max / 2) MILLRACE_RETURN_IF_ERROR(Rotate());
  bytes_ += line.size();
  return writer_->Append(std::as_bytes(std::span(line)));
}

absl::Status RequestLog::Rotate() {
  if (writer_ != nullptr) MILLRACE_RETURN_IF_ERROR(writer_->Close());
  writer_.reset();
  // An empty file is not worth the old one's place.
  const absl::StatusOr<uint64_t> size = files_.FileSize(options_.file);
  if (size.ok() && *size > 0) MILLRACE_RETURN_IF_ERROR(files_.Rename(options_.file, OldFile(options_.file)));
  MILLRACE_ASSIGN_OR_RETURN(writer_, files_.Create(options_.file));
  bytes_ = 0;
  return absl::OkStatus();
}

}  // namespace millrace
