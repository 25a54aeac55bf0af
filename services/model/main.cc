#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "common/address.h"
#include "common/allocator.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/limits.h"
#include "common/model/runtime.h"
#include "common/service_runtime.h"
#include "common/signing.h"
#include "common/status_macros.h"
#include "services/model/cpu_quota.h"
#include "services/model/model_server.h"

int main(int argc, char** argv) {
  millrace::ServiceFlags flags{
      .listen = "127.0.0.1:8500", .http_listen = "127.0.0.1:8501", .asks_for_run_token = false};
  std::string repository;
  std::string source;
  std::string trusted_keys_file;
  std::string admin_token_file;
  int64_t poll_interval_ms = 500;
  uint32_t max_in_flight = 128;
  uint32_t max_batch_rows = 32;
  std::string canary_set;
  double canary_margin = 0.02;
  std::string rollout_mode = "immediate";
  millrace::RolloutOptions rollout;
  size_t standby_versions = 0;
  std::vector<std::string> pins;
  double drain_seconds = 2;
  std::string request_log_file;
  millrace::RequestLog::Options request_log;
  CLI::App app("Serves the newest good version of every model in a repository, and swaps new ones in under load.");
  app.add_option("--repository", repository, "Directory with <model>/<version>/; waited for if it is not there yet")
      ->required();
  app.add_option("--source", source,
                 "grpc://HOST:PORT of shard 0 of a training job: --repository is filled with the versions it exports")
      ->transform([](const std::string& text) { return text.starts_with("grpc://") ? text.substr(7) : text; });
  app.add_option("--trusted-keys", trusted_keys_file,
                 "PEM file with Ed25519 public keys: versions that none of them has signed are refused");
  app.add_option("--canary-set", canary_set,
                 "Labelled images that new versions are measured on: a dataset's directory, of which the test images "
                 "count, or PREFIX of PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, perhaps with .gz; the "
                 "first 1,000. A version that is worse than the one that serves is refused. Models of other images are "
                 "not measured");
  app.add_option("--canary-margin", canary_margin,
                 "By how much a version may be worse on the canary set: of a classifier a difference of accuracies, of "
                 "an autoencoder a share of the live version's error")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  const std::map<std::string, millrace::RolloutOptions::Mode> rollout_modes = {
      {"immediate", millrace::RolloutOptions::Mode::kImmediate},
      {"canary", millrace::RolloutOptions::Mode::kCanary},
      {"shadow", millrace::RolloutOptions::Mode::kShadow}};
  app.add_option(
         "--rollout", rollout_mode,
         "How a verified version takes the place of the one that serves: immediate: at once; canary: first it "
         "answers a fraction of the requests; shadow: first it computes copies of requests for nobody. In both, "
         "copies are computed by both versions and compared, until a verdict promotes or refuses it")
      ->capture_default_str()
      ->check(CLI::IsMember(rollout_modes));
  app.add_option("--canary-fraction", rollout.canary_fraction,
                 "Of the requests that name no version: what a canary answers; the same key, or else input, always "
                 "gets the same version")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--rollout-rows", rollout.limits.rows, "Rows that are compared before a candidate is promoted")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1'000'000'000u));
  app.add_option("--rollout-min-agreement", rollout.limits.agreement_min,
                 "Share of these rows that must get the same answer from both versions")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--rollout-max-confidence-shift", rollout.limits.confidence_shift_max,
                 "By how much the mean probability of the answers may go up or down")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--rollout-max-latency-ratio", rollout.limits.latency_ratio_max,
                 "How many times as long as the version that serves a candidate may compute")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option(
         "--standby-versions", standby_versions,
         "Of each model, how many versions beside the one that serves are loaded too, those that served last or "
         "else the newest before it: requests may name them, and a rollback or pin to one takes no time to load")
      ->capture_default_str()
      ->check(CLI::Range(0, 32));
  app.add_option("--pin", pins,
                 "MODEL=VERSION (mnist=4220), several with commas between: from the start exactly this version is to "
                 "serve, whatever else the repository holds, until an operator pins another or ends it")
      ->delimiter(',');
  app.add_option(
      "--admin-token-file", admin_token_file,
      "File with the bearer token that pins, rollbacks, loads and unloads need; without one only this machine may ask");
  app.add_option("--poll-interval-ms", poll_interval_ms, "Milliseconds between looks at the repository and the source")
      ->capture_default_str()
      ->check(CLI::Range(1, 3'600'000));
  app.add_option("--max-in-flight", max_in_flight, "Requests in flight beyond which new ones get RESOURCE_EXHAUSTED")
      ->capture_default_str()
      ->check(CLI::Range(1u, 100'000u));
  app.add_option("--max-batch-rows", max_batch_rows, "Rows that one forward pass computes at most")
      ->capture_default_str()
      ->check(CLI::Range(1u, millrace::kPredictRowsMax));
  app.add_option("--request-log", request_log_file, "File to which a sample of the requests is written; default: none");
  app.add_option("--request-log-sample", request_log.sample, "Which part of the requests")
      ->capture_default_str()
      ->check(CLI::Range(1e-9, 1.0));
  app.add_option("--request-log-max-bytes", request_log.bytes_max,
                 "Of the file and the one before it together, as 64MiB; when half of it is full, a new file is begun")
      ->capture_default_str()
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--drain-seconds", drain_seconds,
                 "After SIGTERM: seconds in which requests are still answered though /readyz already says no")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 3600.0));
  app.add_option("--max-connection-age-ms", flags.connection_age_max_ms,
                 "gRPC clients are asked to connect anew after so long, and so find new replicas; 0: never. Below "
                 "--drain-seconds, all have left before this process stops answering")
      ->capture_default_str()
      ->check(CLI::Range(0, 86'400'000));
  millrace::AddServiceFlags(app, flags);
  if (std::optional<int> exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;
  rollout.mode = rollout_modes.at(rollout_mode);

  millrace::TuneAllocator();
  return millrace::RunService(
      "millrace-model", flags,
      [&](millrace::ServiceContext& context) -> absl::StatusOr<std::unique_ptr<millrace::Service>> {
        millrace::ConfigureTorch(1);
        request_log.file = request_log_file;
        std::shared_ptr<const millrace::TrustedKeys> trusted_keys;
        if (!trusted_keys_file.empty()) {
          MILLRACE_ASSIGN_OR_RETURN(millrace::TrustedKeys keys, millrace::TrustedKeys::Read(trusted_keys_file));
          trusted_keys = std::make_shared<const millrace::TrustedKeys>(std::move(keys));
        }
        // One intra-op thread each: together no more than the processors that we may use.
        const int executors = std::min(millrace::UsableProcessors(), static_cast<int>(max_in_flight));
        return millrace::ModelServer::Create(
            {.repository = repository,
             .source = source,
             .source_credentials = context.channel_credentials(),
             .poll_interval = absl::Milliseconds(poll_interval_ms),
             .limits = {.executors = executors, .batch_rows = max_batch_rows, .requests = max_in_flight},
             .canary_set = canary_set,
             .canary_margin = canary_margin,
             .rollout = rollout,
             .standby_versions = standby_versions,
             .pins = pins,
             .admin_token_file = admin_token_file,
             .admin_open = millrace::ParseAddress(flags.listen)->is_local(),
             .admin_open_http = !flags.http_listen.empty() && millrace::ParseAddress(flags.http_listen)->is_local(),
             .request_log = request_log.file.empty() ? std::nullopt : std::make_optional(request_log),
             .drain_delay = absl::Seconds(drain_seconds)},
            millrace::ServableLoader(std::move(trusted_keys)), context.metrics(), millrace::RealClock());
      });
}
