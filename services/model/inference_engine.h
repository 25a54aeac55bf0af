// From what a client sent for one version to its answer. The place where requests meet the processors: today
// each runs its own forward pass on its caller's thread, which is the quickest answer for one; whoever gathers several
// into a batch does it behind Infer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/model/execution_gate.h"
#include "services/model/loaded_version.h"
#include "services/model/model_metrics.h"

namespace millrace {

struct InferenceRequest {
  enum class Kind {
    kRaw,    // uint8 [rows, channels, height, width]
    kImage,  // one PNG or JPEG
  };
  Kind kind = Kind::kRaw;
  std::span<const uint8_t> input;                          // the caller's, for the length of the call
  uint32_t rows = 1;                                       // of raw
  absl::Duration wait_max = absl::InfiniteDuration();      // until the client's deadline
  std::function<bool()> cancelled = [] { return false; };  // whether nobody waits for the answer any more; cheap
};

struct InferenceResult {
  std::vector<float> values;  // [rows, ModelInfo::values_per_row()]
  uint32_t rows = 0;
  absl::Duration queue;    // waiting for an executor
  absl::Duration compute;  // in the forward pass
};

// Any thread.
class InferenceEngine {
 public:
  // executors: forward passes at once; in_flight_max: those and the ones that wait.
  InferenceEngine(int executors, int in_flight_max, std::shared_ptr<ModelMetrics> metrics);

  // INVALID_ARGUMENT that names the model and the bytes it expects, or the image's fault; RESOURCE_EXHAUSTED when too
  // many requests are in flight; DEADLINE_EXCEEDED or CANCELLED if the client stopped waiting before the forward pass
  // began (it is not begun then); INTERNAL if the forward pass fails. Counts the request in the version's series.
  absl::StatusOr<InferenceResult> Infer(const LoadedVersion& version, const InferenceRequest& request);

  const ExecutionGate& gate() const { return gate_; }

 private:
  absl::StatusOr<InferenceResult> Run(const LoadedVersion& version, const InferenceRequest& request);

  ExecutionGate gate_;
  const std::shared_ptr<ModelMetrics> metrics_;
};

}  // namespace millrace
