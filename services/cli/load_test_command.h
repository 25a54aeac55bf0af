#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/latency.h"
#include "services/cli/target.h"

namespace millrace {

struct LoadTestOptions {
  Target target = {};
  std::string model{};       // empty: the service's default
  uint32_t concurrency = 0;  // callers; 0: 8, or 64 with a rate
  double rate = 0;           // requests per second; 0: each caller sends its next request when it has an answer
  double seconds = 10;
  uint32_t rows = 1;  // images per request
  uint32_t row_bytes = 28 * 28;
  std::string image{};          // send this PNG or JPEG instead of generated pixels
  double timeout_seconds = 10;  // for one request
  std::string json{};           // empty: no JSON
};

struct LoadTestResult {
  uint64_t requests = 0;  // sent; each was answered, refused or timed out
  uint64_t failed = 0;
  std::map<std::string, uint64_t> failures;  // by their codes' names
  double seconds = 0;                        // from the first request to the last answer
  LatencySamples latency;  // of those that succeeded
  std::string first_error;
};

void AddLoadTestFlags(CLI::App& app, LoadTestOptions& options);

// Closed loop (no rate): `concurrency` callers, each waiting for its answer. Open loop: request i is due at i / rate
// whatever the service does, and its latency counts from then, so that a stall shows in every request that it delayed
// (no coordinated omission). Up to `concurrency` are in flight; beyond that requests queue here and the wait counts.
absl::StatusOr<LoadTestResult> RunLoad(const LoadTestOptions& options);

// {"requests","failed","failures":{CODE:COUNT},"rate","p50_ms","p90_ms","p99_ms","p999_ms"}; latencies of those that
// succeeded
std::string LoadTestJson(LoadTestResult& result);

// Prints the result and writes the JSON. Returns the exit code: kExitFailure if any request failed.
int RunLoadTest(const LoadTestOptions& options);

}  // namespace millrace
