#include "services/cli/load_test_command.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/image_files.h"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

constexpr uint32_t kClosedLoopCallers = 8;
constexpr uint32_t kOpenLoopCallers = 64;

absl::StatusOr<v1::PredictRequest> MakeRequest(const LoadTestOptions& options) {
  v1::PredictRequest request;
  request.set_model(options.model);
  if (!options.image.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(*request.mutable_encoded_image(), ReadFile(options.image, kImageFileBytesMax));
    return request;
  }
  request.set_rows(options.rows);
  std::string& pixels = *request.mutable_raw();
  pixels.resize(static_cast<size_t>(options.rows) * options.row_bytes);
  PhiloxStream random(/*seed=*/1, /*stream=*/0);
  for (char& pixel : pixels) pixel = static_cast<char>(random.NextUint32());
  return request;
}

// What the callers share.
struct Load {
  const LoadTestOptions& options;
  const v1::PredictRequest& request;
  PredictClient& client;
  const Clock& clock;
  const absl::Time start;
  std::atomic<uint64_t> next_request{0};  // open loop: its due time follows from its number
};

void Call(Load& load, absl::Time due, LoadTestResult& result) {
  const auto response = load.client.Predict(load.request, absl::Seconds(load.options.timeout_seconds));
  ++result.requests;
  if (response.ok()) {
    result.latency.Add(load.clock.Now() - due);
    return;
  }
  if (++result.failed == 1) result.first_error = response.status().ToString();
  ++result.failures[absl::StatusCodeToString(response.status().code())];
}

void RunCaller(Load& load, LoadTestResult& result) {
  const absl::Time end = load.start + absl::Seconds(load.options.seconds);
  while (true) {
    absl::Time due = load.clock.Now();
    if (load.options.rate > 0) {
      const auto number = static_cast<double>(load.next_request.fetch_add(1, std::memory_order_relaxed));
      due = load.start + absl::Seconds(number / load.options.rate);
      if (due < end) absl::SleepFor(due - load.clock.Now());
    }
    if (due >= end) return;
    Call(load, due, result);
  }
}

}  // namespace

void AddLoadTestFlags(CLI::App& app, LoadTestOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  app.add_option("--concurrency", options.concurrency, "callers; default 8, or 64 with --rate")
      ->check(CLI::Range(1u, 1024u));
  app.add_option("--rate", options.rate, "requests per second (open loop); default: as fast as answers come")
      ->check(CLI::Range(0.001, 1e6));
  app.add_option("--seconds", options.seconds, "how long")->capture_default_str()->check(CLI::Range(0.01, 86'400.0));
  app.add_option("--rows", options.rows, "images per request")->capture_default_str()->check(CLI::Range(1u, 65'536u));
  app.add_option("--row-bytes", options.row_bytes, "pixels of one image")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1u << 24));
  app.add_option("--image", options.image, "send this PNG or JPEG instead of random pixels");
  app.add_option("--model", options.model, "which model; default: the service's own");
  app.add_option("--timeout-seconds", options.timeout_seconds, "for one request")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 3600.0));
  app.add_option("--json", options.json, "write the results to this file");
}

absl::StatusOr<LoadTestResult> RunLoad(const LoadTestOptions& options) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::PredictRequest request, MakeRequest(options));
  PredictClient client(options.target.address, options.target.credentials());
  // Connecting is not what is measured, and a target that does not answer is one error instead of a million.
  if (const auto first = client.Predict(request, absl::Seconds(options.timeout_seconds)); !first.ok()) {
    return absl::Status(first.status().code(), absl::StrCat(options.target.address, ": ", first.status().message()));
  }

  Load load{options, request, client, RealClock(), RealClock().Now()};
  uint32_t callers = options.concurrency;
  if (callers == 0) callers = options.rate > 0 ? kOpenLoopCallers : kClosedLoopCallers;
  std::vector<LoadTestResult> results(callers);
  {
    std::vector<std::jthread> threads;
    for (LoadTestResult& result : results) threads.emplace_back([&load, &result] { RunCaller(load, result); });
  }
  LoadTestResult total;
  total.seconds = absl::ToDoubleSeconds(load.clock.Now() - load.start);
  for (const LoadTestResult& result : results) {
    total.requests += result.requests;
    total.failed += result.failed;
    for (const auto& [code, count] : result.failures) total.failures[code] += count;
    total.latency.Merge(result.latency);
    if (total.first_error.empty()) total.first_error = result.first_error;
  }
  return total;
}

std::string LoadTestJson(LoadTestResult& result) {
  const nlohmann::ordered_json json = {
      {"requests", result.requests},
      {"failed", result.failed},
      {"failures", result.failures},
      {"rate", result.seconds > 0 ? static_cast<double>(result.requests) / result.seconds : 0.0},
      {"p50_ms", result.latency.PercentileMs(50)},
      {"p90_ms", result.latency.PercentileMs(90)},
      {"p99_ms", result.latency.PercentileMs(99)},
      {"p999_ms", result.latency.PercentileMs(99.9)},
  };
  return json.dump(2) + "\n";
}

int RunLoadTest(const LoadTestOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  absl::StatusOr<LoadTestResult> result = RunLoad(options);
  if (!result.ok()) {
    std::fprintf(stderr, "millrace: %s\n", std::string(result.status().message()).c_str());
    return ExitCodeFor(result.status());
  }
  std::printf("%s requests in %.1f s (%s/s), %s failed; p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, p99.9 %.2f ms\n",
              FormatCount(result->requests).c_str(), result->seconds,
              FormatCount(static_cast<uint64_t>(static_cast<double>(result->requests) / result->seconds)).c_str(),
              FormatCount(result->failed).c_str(), result->latency.PercentileMs(50), result->latency.PercentileMs(90),
              result->latency.PercentileMs(99), result->latency.PercentileMs(99.9));
  if (result->failed > 0) {
    std::fprintf(stderr, "millrace: %s; the first: %s\n",
                 absl::StrJoin(result->failures, ", ", absl::PairFormatter(" ")).c_str(), result->first_error.c_str());
  }
  if (!options.json.empty()) {
    if (const absl::Status status = WriteFileAtomically(options.json, LoadTestJson(*result)); !status.ok()) {
      std::fprintf(stderr, "millrace: %s\n", std::string(status.message()).c_str());
      return ExitCodeFor(status);
    }
  }
  return result->failed > 0 ? kExitFailure : kExitOk;
}

}  // namespace millrace
