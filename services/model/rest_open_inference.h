// The Open Inference Protocol's REST form of ModelInfer: JSON, behind which tensors may follow as bytes (its binary
// tensor extension). Pure functions between that and the messages of the gRPC form.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"

namespace millrace {

struct RestBody {
  std::string bytes;
  std::optional<size_t> json_bytes;  // what of it is JSON, the header Inference-Header-Content-Length. Unset: all
};

// Without model_name and model_version, which are in the path. Binary tensors become raw_input_contents, others typed
// contents. INVALID_ARGUMENT names what is wrong in the JSON or in the sizes; what the model makes of the tensors is
// not looked at. Parameters that are neither bool, number nor string are left out.
absl::StatusOr<inference::ModelInferRequest> InferRequestFromRest(std::string_view body,
                                                                  std::optional<size_t> json_bytes);

// `response` has raw contents. Those outputs are binary for which the request's parameter `binary_data`, or for all its
// `binary_data_output`, says so.
RestBody InferResponseToRest(const inference::ModelInferRequest& request,
                             const inference::ModelInferResponse& response);

}  // namespace millrace
