#pragma once

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/cli/summary.h"

namespace millrace {

// The test split as the data service hands it out, in file order.
struct TestImages {
  size_t image_bytes = 0;
  std::string pixels{};  // uint8 [count, image_bytes]
  std::string labels{};  // uint8 [count]
  size_t count() const { return labels.size(); }
};

// Reads the test split of `plan`'s dataset from the data service, which has replicas at `addresses`. CANCELLED soon
// after `stop` says so.
absl::StatusOr<TestImages> FetchTestImages(const std::vector<std::string>& addresses, const v1::JobPlan& plan,
                                           const std::stop_token& stop);

// Proves that what was trained is what is served: waits until the model service at `address` serves `version` of
// `model`, then sends it every test image, one per request, from a few callers at once. Blocks; `done` counts requests
// for whoever watches, `stop` ends it early with CANCELLED. ABORTED if the service refused the version,
// DEADLINE_EXCEEDED if it does not get to serve it. Failed requests are counted in the result, not an error.
absl::StatusOr<ServedResult> CheckServing(const std::string& address, const std::string& model, uint64_t version,
                                          const TestImages& images, std::stop_token stop, std::atomic<uint64_t>& done);

}  // namespace millrace
