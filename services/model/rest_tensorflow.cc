#include "services/model/rest_tensorflow.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "services/model/open_inference.h"
#include "services/model/rest_json.h"

namespace millrace {
namespace {

absl::StatusOr<RestJson> Unwrap(RestJson value, const TensorSpec& input) {
  if (!value.is_object()) return value;
  const auto found = value.find(input.name);
  if (found == value.end() || value.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat("the model takes one input, ", input.name));
  }
  return std::move(*found);
}

// The rows, from whichever of the two keys is there.
absl::StatusOr<RestJson> RowsOf(RestJson json, const TensorSpec& input, bool& columns) {
  if (!json.is_object() || json.contains("instances") == json.contains("inputs")) {
    return absl::InvalidArgumentError("the request must be an object with either 'instances' or 'inputs'");
  }
  const auto signature = json.find("signature_name");
  if (signature != json.end() && *signature != "" && *signature != "serving_default") {
    return absl::InvalidArgumentError("there is no signature but serving_default");
  }
  columns = json.contains("inputs");
  if (columns) return Unwrap(std::move(json["inputs"]), input);
  RestJson rows = std::move(json["instances"]);
  if (!rows.is_array()) return absl::InvalidArgumentError("'instances' must be an array");
  for (RestJson& row : rows) {
    MILLRACE_ASSIGN_OR_RETURN(RestJson values, Unwrap(std::move(row), input));
    row = std::move(values);
  }
  return rows;
}

std::vector<int64_t> WithoutOnes(std::vector<int64_t> shape) {
  std::erase(shape, 1);
  return shape;
}

absl::Status CheckRowShape(const TensorSpec& input, const std::vector<int64_t>& shape) {
  const std::vector<int64_t> row(shape.begin() + 1, shape.end());
  const bool flat = row.size() == 1 && row[0] == static_cast<int64_t>(input.row_values());
  if (flat || WithoutOnes(row) == WithoutOnes(input.row_shape)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a row has shape [", absl::StrJoin(row, ", "), "]; the model takes [",
                                                 absl::StrJoin(input.row_shape, ", "), "] or [", input.row_values(),
                                                 "]"));
}

// Of `shape` from dimension `level` on; takes its values from `next`.
RestJson Nested(const google::protobuf::RepeatedField<int64_t>& shape, int level, const char*& next) {
  if (level == shape.size()) {
    float value = 0;
    std::memcpy(&value, next, sizeof value);
    next += sizeof value;
    return value;
  }
  RestJson json = RestJson::array();
  for (int64_t i = 0; i < shape[level]; ++i) json.push_back(Nested(shape, level + 1, next));
  return json;
}

RestJson Rows(const inference::ModelInferResponse& response, int output) {
  const char* next = response.raw_output_contents(output).data();
  return Nested(response.outputs(output).shape(), 0, next);
}

const char* StateOf(const std::string& state) {
  if (state == "READY") return "AVAILABLE";
  if (state == "UNAVAILABLE") return "END";
  return state == "LOADING" ? "LOADING" : "UNLOADING";
}

}  // namespace

absl::StatusOr<TensorFlowPredict> PredictFromRest(const ModelInfo& info, std::string_view body) {
  TensorFlowPredict request;
  const TensorSpec input = InputOf(info);
  MILLRACE_ASSIGN_OR_RETURN(RestJson json, ParseRestJson(body));
  MILLRACE_ASSIGN_OR_RETURN(const RestJson rows, RowsOf(std::move(json), input, request.columns));
  MILLRACE_ASSIGN_OR_RETURN(const NumberArray numbers, ReadNumbers(rows));
  if (numbers.shape.empty()) return absl::InvalidArgumentError("a number is where rows should be");
  MILLRACE_RETURN_IF_ERROR(CheckRowShape(input, numbers.shape));

  auto* tensor = request.message.add_inputs();
  tensor->set_name(input.name);
  tensor->set_datatype(numbers.is_bytes ? "UINT8" : "FP32");
  tensor->add_shape(numbers.shape[0]);
  for (const int64_t size : input.row_shape) tensor->add_shape(size);
  if (numbers.is_bytes) {
    tensor->mutable_contents()->mutable_uint_contents()->Assign(numbers.values.begin(), numbers.values.end());
  } else {
    tensor->mutable_contents()->mutable_fp32_contents()->Assign(numbers.values.begin(), numbers.values.end());
  }
  return request;
}

std::string PredictToRest(const TensorFlowPredict& request, const inference::ModelInferResponse& response) {
  RestJson result;
  if (response.outputs_size() == 1) {
    result = Rows(response, 0);
  } else if (request.columns) {
    for (int i = 0; i < response.outputs_size(); ++i) result[response.outputs(i).name()] = Rows(response, i);
  } else {
    for (int i = 0; i < response.outputs_size(); ++i) {
      RestJson rows = Rows(response, i);
      for (size_t row = 0; row < rows.size(); ++row) result[row][response.outputs(i).name()] = std::move(rows[row]);
    }
  }
  RestJson json;
  json[request.columns ? "outputs" : "predictions"] = std::move(result);
  return json.dump();
}

absl::StatusOr<std::string> StatusToRest(const inference::RepositoryIndexResponse& index, const std::string& model,
                                         const std::string& version) {
  RestJson versions = RestJson::array();
  for (const auto& entry : index.models()) {
    if (entry.name() != model || (!version.empty() && entry.version() != version)) continue;
    const bool refused = entry.state() == "UNAVAILABLE";
    versions.push_back(
        {{"version", entry.version()},
         {"state", StateOf(entry.state())},
         {"status",
          {{"error_code", refused ? "FAILED_PRECONDITION" : "OK"}, {"error_message", refused ? entry.reason() : ""}}}});
  }
  if (versions.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "there is no ", version.empty() ? "" : absl::StrCat("version ", version, " of "), "model ", model));
  }
  RestJson json;
  json["model_version_status"] = std::move(versions);
  return json.dump(-1, ' ', false, RestJson::error_handler_t::replace);
}

}  // namespace millrace
