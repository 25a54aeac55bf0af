// The Open Inference Protocol's requests (proto/inference/grpc_service.proto) as the engine takes them, and its
// answers: pure functions, for gRPC and REST alike.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "inference/grpc_service.pb.h"
#include "services/model/inference.h"

namespace millrace {

// One of a model's tensors, by the names that the servable's config.pbtxt uses.
struct TensorSpec {
  std::string name;
  std::string datatype;
  std::vector<int64_t> row_shape;  // without the batch dimension
  uint64_t first_value = 0;        // of an output: where a row of it begins in a row of InferenceAnswer::values

  uint64_t row_values() const;
};
TensorSpec InputOf(const ModelInfo& info);  // also taken as FP32
std::vector<TensorSpec> OutputsOf(const ModelInfo& info);

// "" is 0: the version that serves. INVALID_ARGUMENT for what is not a number; the labels (ServingTable) are none.
absl::StatusOr<uint64_t> ParseModelVersion(std::string_view text);

// A request that has passed every check, and what its answer is to hold.
struct OpenInference {
  OpenInference() = default;
  OpenInference(OpenInference&&) = default;
  OpenInference& operator=(OpenInference&&) = default;

  InferenceRequest request;  // its input: in the message, or in one of the next two
  std::vector<uint8_t> bytes;
  std::vector<float> floats;
  std::vector<TensorSpec> outputs;  // in the order asked for
  std::string id;
  bool raw = false;  // whether the answer's numbers are raw bytes, as the request's were, or typed
};

// `message` must live until the answer. `now` and `deadline` are of the engine's clock; the parameter `timeout` may
// tighten the deadline. INVALID_ARGUMENT names the tensor, and what the model takes:
//   an input or output that the model does not have, or twice; a datatype, shape, number of elements or of bytes that
//   is not its own; raw and typed contents, or neither; a UINT8 over 255; a NaN or an infinity; tensors in shared
//   memory; `deterministic`, `timeout` or `key` of another type
absl::StatusOr<OpenInference> ToInference(const ModelInfo& info, const inference::ModelInferRequest& message,
                                          absl::Time now, absl::Time deadline);

void FillResponse(const ModelInfo& info, const OpenInference& inference, const InferenceAnswer& answer,
                  inference::ModelInferResponse* response);

}  // namespace millrace
