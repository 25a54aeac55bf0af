#include "services/model/model_server.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/address.h"
#include "common/files.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/model_name.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {

namespace {

std::vector<uint64_t> PinnedVersions(const ServingTable& table) {
  std::vector<uint64_t> versions;
  for (const auto& [model, version] : table.pins()) versions.push_back(version);
  return versions;
}

std::unique_ptr<VersionMirror> MakeMirror(const ModelServer::Options& options, const ServingTable& table,
                                          Metrics& metrics, const Clock& clock) {
  if (options.source.empty()) return nullptr;
  const auto loaded = static_cast<uint32_t>(1 + options.standby_versions);
  return std::make_unique<VersionMirror>(VersionMirror::Options{.source = options.source,
                                                                .repository = options.repository,
                                                                .poll_interval = options.poll_interval,
                                                                .credentials = options.source_credentials,
                                                                .keep = std::max(VersionMirror::kKeptMin, loaded),
                                                                .pins = [&table] { return PinnedVersions(table); }},
                                         metrics, clock);
}

// Versions by model.
absl::StatusOr<std::map<std::string, uint64_t>> ParsePins(const std::vector<std::string>& texts) {
  std::map<std::string, uint64_t> pins;
  for (const std::string& text : texts) {
    const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
    uint64_t version = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[1], &version) || version == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--pin must be MODEL=VERSION, with a version from 1, and is '", text, "'"));
    }
    MILLRACE_RETURN_IF_ERROR(CheckModelName("--pin: the model's name", parts[0]));
    if (!pins.try_emplace(parts[0], version).second) {
      return absl::InvalidArgumentError(absl::StrCat("--pin names model ", parts[0], " twice"));
    }
  }
  return pins;
}

std::string RolloutText(const RolloutOptions& options) {
  if (options.mode == RolloutOptions::Mode::kImmediate) return "immediate";
  return absl::StrFormat(
      "%s, verdict after %d rows: at least %g %% agree, confidence moves by at most %g, %g times the "
      "latency",
      options.mode == RolloutOptions::Mode::kShadow ? "shadow"
                                                    : absl::StrFormat("canary of %g %%", 100 * options.canary_fraction),
      options.limits.rows, 100 * options.limits.agreement_min, options.limits.confidence_shift_max,
      options.limits.latency_ratio_max);
}

std::string ScoreText(const std::optional<CanaryScore>& score) {
  if (!score) return "-";
  return score->measure == CanaryScore::Measure::kAccuracy ? absl::StrFormat("%.2f%%", 100 * score->value)
                                                           : absl::StrFormat("%.6f", score->value);
}

}  // namespace

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
  if (!options.source.empty()) {
    const absl::Status source = ParseAddress(options.source).status();
    if (!source.ok()) return absl::InvalidArgumentError(absl::StrCat("--source: ", source.message()));
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(options.repository));
  }
  if (!options.admin_token_file.empty()) {
    const absl::Status token = ReadToken(options.admin_token_file).status();
    if (!token.ok()) return absl::Status(token.code(), absl::StrCat("--admin-token-file: ", token.message()));
  }
  MILLRACE_RETURN_IF_ERROR(CheckOptions(options.rollout));
  if (!(options.canary_margin >= 0 && options.canary_margin <= 1)) {
    return absl::InvalidArgumentError("--canary-margin must be in [0, 1]");
  }
  MILLRACE_ASSIGN_OR_RETURN(const Pins pins, ParsePins(options.pins));
  std::optional<CanarySet> canary_set;
  if (!options.canary_set.empty()) {
    absl::StatusOr<CanarySet> read = CanarySet::Read(options.canary_set);
    if (!read.ok()) return absl::InvalidArgumentError(absl::StrCat("--canary-set: ", read.status().message()));
    canary_set = *std::move(read);
  }
  const absl::Status repository = ListRepository(options.repository).status();
  if (absl::IsFailedPrecondition(repository)) return repository;
  std::unique_ptr<RequestLog> request_log;
  if (options.request_log) {
    MILLRACE_ASSIGN_OR_RETURN(request_log, RequestLog::Create(*options.request_log, metrics, clock));
  }
  return std::unique_ptr<ModelServer>(new ModelServer(std::move(options), pins, std::move(canary_set), std::move(load),
                                                      std::move(request_log), metrics, clock));
}

ModelServer::ModelServer(Options options, const Pins& pins, std::optional<CanarySet> canary_set, LoadVersion load,
                         std::unique_ptr<RequestLog> request_log, Metrics& metrics, const Clock& clock)
    : options_(std::move(options)),
      metrics_(ModelMetrics::Create(metrics)),
      request_log_(std::move(request_log)),
      table_(options_.standby_versions),
      engine_(options_.limits, clock),
      explainer_(metrics, clock),
      service_(table_, engine_, explainer_, clock),
      mirror_(MakeMirror(options_, table_, metrics, clock)),
      catalog_(table_, options_.limits, [this] { return Ready(); }),
      control_(loader_),
      open_inference_(catalog_, engine_, clock, control_, {options_.admin_token_file, options_.admin_open}),
      rest_(catalog_, engine_, explainer_, clock, control_, {options_.admin_token_file, options_.admin_open_http}),
      loader_({.repository = options_.repository,
               .poll_interval = options_.poll_interval,
               .warm = [this](const std::shared_ptr<const LoadedVersion>& version) { engine_.Warm(version); },
               .canary_set = std::move(canary_set),
               .canary_margin = options_.canary_margin,
               .rollout = options_.rollout},
              std::move(load), table_, metrics_, clock),
      admin_({.repository = options_.repository, .token_file = options_.admin_token_file, .open = options_.admin_open},
             table_, loader_) {
  if (request_log_ != nullptr) {
    engine_.OnAnswer([this](const LoadedVersion& version, const InferenceRequest& request, const absl::Status& fault,
                            const InferenceAnswer& answer) { request_log_->Observe(version, request, fault, answer); });
  }
  table_.OnChange([this] { service_.VersionsChanged(); });
  for (const auto& [model, version] : pins) {
    loader_.Pin(model, version);
    LogInfo("pinned", {{"model", model}, {"version", version}});
  }
}

absl::Status ModelServer::Ready() {
  if (draining_) return absl::UnavailableError("draining");
  if (!table_.serves_any()) {
    const absl::Status source = mirror_ == nullptr ? absl::OkStatus() : mirror_->status();
    std::string why = absl::StrCat("no model version serves yet from ", options_.repository.string());
    for (const auto& [model, version] : table_.pins()) {
      absl::StrAppend(&why, "; version ", version, " of model ", model, " is pinned");
    }
    if (!source.ok()) absl::StrAppend(&why, "; the source: ", source.message());
    return absl::UnavailableError(why);
  }
  return absl::OkStatus();
}

absl::Status ModelServer::Started(const ListenAddresses&) {
  LogInfo("answering", {{"executors", options_.limits.executors},
                        {"batch_rows_max", options_.limits.batch_rows},
                        {"in_flight_max", options_.limits.requests},
                        {"repository", options_.repository.string()}});
  if (mirror_ != nullptr) mirror_->Start();
  loader_.Start();
  return absl::OkStatus();
}

void ModelServer::Drain(absl::Duration) {
  draining_ = true;
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(options_.drain_delay));
  if (mirror_ != nullptr) mirror_->Stop();
  service_.Drain();
  open_inference_.Drain();
  loader_.Stop();
}

std::string ModelServer::StatusPage() {
  const absl::Status repository = loader_.repository_status();
  std::string page;
  if (mirror_ != nullptr) {
    const absl::Status source = mirror_->status();
    page = absl::StrCat("source:      ", options_.source, source.ok() ? "" : absl::StrCat(" (", source.message(), ")"),
                        "\n");
  }
  absl::StrAppend(&page, "repository:  ", options_.repository.string(),
                  repository.ok() ? "" : absl::StrCat(" (", repository.message(), ")"), "\npolled:      every ",
                  absl::FormatDuration(options_.poll_interval), "\nrollout:     ", RolloutText(options_.rollout),
                  "\nin flight:   ", engine_.in_flight(), " of ", options_.limits.requests, ", ",
                  options_.limits.executors, " batches at once of up to ", options_.limits.batch_rows, " rows\n\n");
  absl::StrAppendFormat(&page, "%-16s %12s %-15s %9s %10s %12s  %s\n", "MODEL", "VERSION", "STATE", "ACCURACY",
                        "CANARY SET", "REQUESTS", "REASON");
  for (const VersionReport& report : table_.Report()) {
    absl::StrAppendFormat(&page, "%-16s %12d %-15s %9s %10s %12d  %s\n", report.model, report.version,
                          absl::StrCat(ToAbsl(StateName(report.state)), report.pinned ? " PINNED" : ""),
                          report.accuracy > 0 ? absl::StrFormat("%.2f%%", 100 * report.accuracy) : "-",
                          ScoreText(report.canary_score), report.requests, report.reason);
  }
  return page;
}

}  // namespace millrace
