// What a client asks of a version and what it gets, whatever the protocol: the seam between those who translate
// (predict_service.cc, open_inference.cc) and the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/model/predictor.h"

namespace millrace {

struct InferenceRequest {
  enum class Kind {
    kRaw,     // uint8 [rows, channels, height, width]
    kFloats,  // the same as float32 of this machine, 0 to 255 too, and at an address that suits them
    kImage,   // one PNG or JPEG
  };
  Kind kind = Kind::kRaw;
  std::span<const uint8_t> input;                // the caller's, until the answer
  uint32_t rows = 1;                             // of raw and of floats
  absl::Time deadline = absl::InfiniteFuture();  // of the engine's clock
  bool deterministic = false;                    // the same bits for a row whatever else is being computed
  bool any_version = false;                      // it names none: a rollout may choose (rollout.h)
  std::string_view key = {};                     // by which one chooses; the caller's; empty: the input is the key
  // Who asks, by address; for the request log. May be called until the answer is given. Unset: not known.
  std::function<std::string()> peer = nullptr;
};

// INVALID_ARGUMENT: not what this model takes, or over a limit.
absl::Status CheckRequest(const ModelInfo& info, const InferenceRequest& request);
// Of one row of the request's input.
uint64_t RowBytes(const ModelInfo& info, const InferenceRequest& request);

struct InferenceAnswer {
  std::vector<float> values;  // [rows, ModelInfo::values_per_row()]
  uint32_t rows = 0;
  uint32_t batch_rows = 0;    // rows of the batch in which they were computed; of several, the largest
  absl::Duration queue;       // waiting for an executor
  absl::Duration batch_wait;  // from there to the forward pass: waking the executor, decoding images, company's too
  absl::Duration compute;     // in the forward pass
};

// Called exactly once for a request, on any thread, also before Infer returns. Must not block.
using InferenceDone = std::function<void(absl::StatusOr<InferenceAnswer>)>;

}  // namespace millrace
