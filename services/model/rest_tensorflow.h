// TensorFlow Serving's REST form of predictions and model status. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "inference/grpc_service.pb.h"
#include "services/model/predictor.h"

namespace millrace {

struct TensorFlowPredict {
  inference::ModelInferRequest message;
  bool columns = false;  // asked with "inputs", to be answered with "outputs"
};

// {"instances": [row, ...]} or {"inputs": [row, ...]}. A row is nested arrays of numbers, 0 to 255, or an object that
// has them as INPUT__0 ("inputs" may be such an object of all rows). It has the model's shape, dimensions of 1 left out
// or put in wherever one likes, or is flat. INVALID_ARGUMENT says what does not fit.
absl::StatusOr<TensorFlowPredict> PredictFromRest(const ModelInfo& info, std::string_view body);

// {"predictions": [row, ...]}; of a model with several outputs a row is an object. To "inputs": {"outputs": ...}, of
// several outputs an object of their rows. `response` has raw contents.
std::string PredictToRest(const TensorFlowPredict& request, const inference::ModelInferResponse& response);

// {"model_version_status": [...]} of one model and, if `version` is not empty, of that version. NOT_FOUND.
absl::StatusOr<std::string> StatusToRest(const inference::RepositoryIndexResponse& index, const std::string& model,
                                         const std::string& version);

}  // namespace millrace
