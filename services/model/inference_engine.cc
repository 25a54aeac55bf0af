#include "services/model/inference_engine.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "services/model/image_decoder.h"
#include "services/model/image_preparation.h"

namespace millrace {
namespace {

using SteadyClock = std::chrono::steady_clock;

absl::Duration Since(SteadyClock::time_point start) { return absl::FromChrono(SteadyClock::now() - start); }

absl::Status CheckRequest(const ModelInfo& info, const InferenceRequest& request) {
  if (request.kind == InferenceRequest::Kind::kImage) {
    if (request.rows > 1) return absl::InvalidArgumentError("encoded_image is one row; rows must be 0 or 1");
    return absl::OkStatus();
  }
  if (request.rows == 0 || request.rows > kPredictRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat("rows is ", request.rows, "; the limit is ", kPredictRowsMax));
  }
  const uint64_t expected = info.input.bytes() * request.rows;
  if (request.input.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat("model ", info.model, " takes uint8 [rows, ", info.input.channels,
                                                   ", ", info.input.height, ", ", info.input.width, "]: ", expected,
                                                   " bytes for rows = ", request.rows, ", got ", request.input.size()));
  }
  return absl::OkStatus();
}

absl::Status CheckStillWanted(const InferenceRequest& request, SteadyClock::time_point start) {
  if (request.cancelled()) return absl::CancelledError("the client cancelled the request");
  if (Since(start) >= request.wait_max) {
    return absl::DeadlineExceededError("the deadline passed before the forward pass began");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint8_t>> PixelsOf(const ModelInfo& info, std::span<const uint8_t> encoded) {
  MILLRACE_ASSIGN_OR_RETURN(const Image image, DecodeImage(encoded, info.input.channels));
  return PrepareImage(image, info.input);
}

}  // namespace

InferenceEngine::InferenceEngine(int executors, int in_flight_max, std::shared_ptr<ModelMetrics> metrics)
    : gate_(executors, in_flight_max), metrics_(std::move(metrics)) {}

absl::StatusOr<InferenceResult> InferenceEngine::Infer(const LoadedVersion& version, const InferenceRequest& request) {
  const SteadyClock::time_point start = SteadyClock::now();
  version.CountRequest();
  absl::StatusOr<InferenceResult> result = Run(version, request);
  metrics_->SetInFlight(gate_.in_flight());
  version.series().CountRequest(result.status().code(), Since(start));
  if (result.ok()) version.series().ObserveParts(result->queue, result->compute);
  return result;
}

absl::StatusOr<InferenceResult> InferenceEngine::Run(const LoadedVersion& version, const InferenceRequest& request) {
  const SteadyClock::time_point start = SteadyClock::now();
  MILLRACE_RETURN_IF_ERROR(CheckRequest(version.info(), request));
  MILLRACE_ASSIGN_OR_RETURN(const ExecutionGate::Permit permit, gate_.Enter(request.wait_max));
  InferenceResult result{.values = {}, .rows = request.rows, .queue = Since(start), .compute = {}};
  metrics_->SetInFlight(gate_.in_flight());

  // Decoding is work too, and takes memory: it has its place behind the gate.
  std::vector<uint8_t> decoded;
  std::span<const uint8_t> pixels = request.input;
  if (request.kind == InferenceRequest::Kind::kImage) {
    MILLRACE_RETURN_IF_ERROR(CheckStillWanted(request, start));
    MILLRACE_ASSIGN_OR_RETURN(decoded, PixelsOf(version.info(), request.input));
    pixels = decoded;
    result.rows = 1;
  }
  MILLRACE_RETURN_IF_ERROR(CheckStillWanted(request, start));
  const SteadyClock::time_point compute_start = SteadyClock::now();
  MILLRACE_ASSIGN_OR_RETURN(result.values, version.predictor().Predict(pixels, result.rows));
  result.compute = Since(compute_start);
  if (result.values.size() != uint64_t{result.rows} * version.info().values_per_row()) {
    return absl::InternalError(absl::StrCat("model ", version.info().model, " answered ", result.values.size(),
                                            " numbers for ", result.rows, " rows"));
  }
  return result;
}

}  // namespace millrace
