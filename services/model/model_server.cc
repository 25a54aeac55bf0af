#include "services/model/model_server.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/limits.h"
#include "common/log.h"

namespace millrace {

absl::StatusOr<std::unique_ptr<ModelServer>> ModelServer::Create(Options options, LoadVersion load, Metrics& metrics,
                                                                 const Clock& clock) {
  if (options.repository.empty()) return absl::InvalidArgumentError("--repository is empty");
  if (options.poll_interval <= absl::ZeroDuration() || options.poll_interval > absl::Hours(1)) {
    return absl::InvalidArgumentError("--poll-interval-ms must be in [1, 3600000]");
  }
  if (options.drain_delay < absl::ZeroDuration() || options.drain_delay > absl::Hours(1)) {
    return absl::InvalidArgumentError("--drain-seconds must be in [0, 3600]");
  }
  const Batcher::Limits& limits = options.limits;
  if (limits.executors < 1 || limits.requests < static_cast<uint32_t>(limits.executors)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-in-flight must be at least the number of executors, ", limits.executors));
  }
  if (limits.batch_rows < 1 || limits.batch_rows > kPredictRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat("--max-batch-rows must be in [1, ", kPredictRowsMax, "]"));
  }
  const absl::Status repository = ListRepository(options.repository).status();
  if (absl::IsFailedPrecondition(repository)) return repository;
  return std::unique_ptr<ModelServer>(new ModelServer(std::move(options), std::move(load), metrics, clock));
}

ModelServer::ModelServer(Options options, LoadVersion load, Metrics& metrics, const Clock& clock)
    : options_(std::move(options)),
      metrics_(ModelMetrics::Create(metrics)),
      engine_(options_.limits, clock),
      service_(table_, engine_, clock),
      catalog_(table_, options_.limits, [this] { return Ready(); }),
      open_inference_(catalog_, engine_, clock),
      rest_(catalog_, engine_, clock),
      loader_({.repository = options_.repository,
               .poll_interval = options_.poll_interval,
               .warm = [this](const std::shared_ptr<const LoadedVersion>& version) { engine_.Warm(version); }},
              std::move(load), table_, metrics_, clock) {}

absl::Status ModelServer::Ready() {
  if (draining_) return absl::UnavailableError("draining");
  if (!table_.serves_any()) {
    return absl::UnavailableError(absl::StrCat("no model version serves yet from ", options_.repository.string()));
  }
  return absl::OkStatus();
}

absl::Status ModelServer::Started(const ListenAddresses&) {
  LogInfo("answering", {{"executors", options_.limits.executors},
                        {"batch_rows_max", options_.limits.batch_rows},
                        {"in_flight_max", options_.limits.requests},
                        {"repository", options_.repository.string()}});
  loader_.Start();
  return absl::OkStatus();
}

void ModelServer::Drain(absl::Duration) {
  draining_ = true;
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(options_.drain_delay));
  open_inference_.Drain();
  loader_.Stop();
}

std::string ModelServer::StatusPage() {
  const absl::Status repository = loader_.repository_status();
  std::string page =
      absl::StrCat("repository:  ", options_.repository.string(),
                   repository.ok() ? "" : absl::StrCat(" (", repository.message(), ")"), "\npolled:      every ",
                   absl::FormatDuration(options_.poll_interval), "\nin flight:   ", engine_.in_flight(), " of ",
                   options_.limits.requests, ", ", options_.limits.executors, " batches at once of up to ",
                   options_.limits.batch_rows, " rows\n\n");
  absl::StrAppendFormat(&page, "%-16s %12s %-8s %9s %12s  %s\n", "MODEL", "VERSION", "STATE", "ACCURACY", "REQUESTS",
                        "REASON");
  for (const VersionReport& report : table_.Report()) {
    absl::StrAppendFormat(
        &page, "%-16s %12d %-8s %9s %12d  %s\n", report.model, report.version, StateName(report.state),
        report.accuracy > 0 ? absl::StrFormat("%.2f%%", 100 * report.accuracy) : "-", report.requests, report.reason);
  }
  return page;
}

}  // namespace millrace
