#include "services/model/rest_open_inference.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/model/rest_json.h"

namespace millrace {
namespace {

using Parameter = inference::InferParameter;
using Parameters = google::protobuf::Map<std::string, Parameter>;
using Tensor = inference::ModelInferRequest::InferInputTensor;

template <typename... Parts>
absl::Status Fault(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

const RestJson* Member(const RestJson& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

absl::StatusOr<std::string> TextMember(const RestJson& object, const char* name) {
  const RestJson* member = Member(object, name);
  if (member == nullptr) return std::string();
  if (!member->is_string()) return Fault("'", name, "' must be a string");
  return member->get<std::string>();
}

absl::Status ReadParameters(const RestJson& object, Parameters& parameters) {
  const RestJson* member = Member(object, "parameters");
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_object()) return Fault("'parameters' must be an object");
  for (const auto& [name, value] : member->items()) {
    if (value.is_boolean()) parameters[name].set_bool_param(value.get<bool>());
    if (value.is_string()) parameters[name].set_string_param(value.get<std::string>());
    if (value.is_number_float()) parameters[name].set_double_param(value.get<float>());
    if (!value.is_number_integer()) continue;
    const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX};
    if (fits) {
      parameters[name].set_int64_param(value.get<int64_t>());
    } else {
      parameters[name].set_uint64_param(value.get<uint64_t>());
    }
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const RestJson& object, Tensor& tensor) {
  const RestJson* shape = Member(object, "shape");
  if (shape == nullptr || !shape->is_array()) return Fault("input ", tensor.name(), ": 'shape' must be an array");
  for (const RestJson& size : *shape) {
    if (!size.is_number_integer()) return Fault("input ", tensor.name(), ": 'shape' must hold whole numbers");
    tensor.add_shape(size.get<int64_t>());
  }
  return absl::OkStatus();
}

absl::Status ReadData(const RestJson& object, Tensor& tensor) {
  const RestJson* data = Member(object, "data");
  const bool bytes = tensor.datatype() == "UINT8";
  if (data == nullptr || (!bytes && tensor.datatype() != "FP32")) return absl::OkStatus();
  if (!data->is_array()) return Fault("input ", tensor.name(), ": 'data' must be an array");
  const absl::StatusOr<NumberArray> numbers = ReadNumbers(*data);
  if (!numbers.ok()) return Fault("input ", tensor.name(), ": ", numbers.status().message());
  if (!bytes) {
    tensor.mutable_contents()->mutable_fp32_contents()->Assign(numbers->values.begin(), numbers->values.end());
    return absl::OkStatus();
  }
  if (!numbers->is_bytes) return Fault("input ", tensor.name(), ": UINT8 takes whole numbers from 0 to 255");
  tensor.mutable_contents()->mutable_uint_contents()->Assign(numbers->values.begin(), numbers->values.end());
  return absl::OkStatus();
}

// Takes the tensor's bytes off the front of `binary`.
absl::Status ReadBinary(const Tensor& tensor, std::string_view& binary, inference::ModelInferRequest& request) {
  const auto size = tensor.parameters().find("binary_data_size");
  if (size == tensor.parameters().end()) return absl::OkStatus();
  const int64_t bytes = size->second.int64_param();
  if (!size->second.has_int64_param() || bytes < 0 || static_cast<uint64_t>(bytes) > binary.size()) {
    return Fault("input ", tensor.name(), ": binary_data_size does not fit the ", binary.size(),
                 " bytes that are left behind the JSON (Inference-Header-Content-Length says where it ends)");
  }
  request.add_raw_input_contents(binary.data(), static_cast<size_t>(bytes));
  binary.remove_prefix(static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status ReadInput(const RestJson& object, std::string_view& binary, inference::ModelInferRequest& request) {
  if (!object.is_object()) return Fault("'inputs' must hold objects");
  Tensor& tensor = *request.add_inputs();
  MILLRACE_ASSIGN_OR_RETURN(*tensor.mutable_name(), TextMember(object, "name"));
  MILLRACE_ASSIGN_OR_RETURN(*tensor.mutable_datatype(), TextMember(object, "datatype"));
  MILLRACE_RETURN_IF_ERROR(ReadShape(object, tensor));
  MILLRACE_RETURN_IF_ERROR(ReadParameters(object, *tensor.mutable_parameters()));
  MILLRACE_RETURN_IF_ERROR(ReadData(object, tensor));
  return ReadBinary(tensor, binary, request);
}

absl::Status ReadOutputs(const RestJson& json, inference::ModelInferRequest& request) {
  const RestJson* outputs = Member(json, "outputs");
  if (outputs == nullptr) return absl::OkStatus();
  if (!outputs->is_array()) return Fault("'outputs' must be an array");
  for (const RestJson& object : *outputs) {
    if (!object.is_object()) return Fault("'outputs' must hold objects");
    auto* output = request.add_outputs();
    MILLRACE_ASSIGN_OR_RETURN(*output->mutable_name(), TextMember(object, "name"));
    MILLRACE_RETURN_IF_ERROR(ReadParameters(object, *output->mutable_parameters()));
  }
  return absl::OkStatus();
}

bool WantsBinary(const inference::ModelInferRequest& request, const std::string& output) {
  for (const auto& wanted : request.outputs()) {
    if (wanted.name() != output) continue;
    const auto found = wanted.parameters().find("binary_data");
    if (found != wanted.parameters().end()) return found->second.bool_param();
  }
  const auto found = request.parameters().find("binary_data_output");
  return found != request.parameters().end() && found->second.bool_param();
}

RestJson ParametersToJson(const Parameters& parameters) {
  RestJson json = RestJson::object();
  for (const auto& [name, value] : parameters) {
    if (value.has_string_param()) {
      json[name] = value.string_param();
    } else {
      json[name] = value.int64_param();  // we answer with no others
    }
  }
  return json;
}

std::vector<float> FloatsOf(const std::string& raw) {
  std::vector<float> floats(raw.size() / sizeof(float));
  std::memcpy(floats.data(), raw.data(), floats.size() * sizeof(float));
  return floats;
}

}  // namespace

absl::StatusOr<inference::ModelInferRequest> InferRequestFromRest(std::string_view body,
                                                                  std::optional<size_t> json_bytes) {
  const size_t json_end = json_bytes.value_or(body.size());
  if (json_end > body.size()) {
    return Fault("Inference-Header-Content-Length is ", json_end, ", the body has ", body.size(), " bytes");
  }
  MILLRACE_ASSIGN_OR_RETURN(const RestJson json, ParseRestJson(body.substr(0, json_end)));
  if (!json.is_object()) return Fault("the request must be an object");
  inference::ModelInferRequest request;
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_id(), TextMember(json, "id"));
  MILLRACE_RETURN_IF_ERROR(ReadParameters(json, *request.mutable_parameters()));
  const RestJson* inputs = Member(json, "inputs");
  if (inputs == nullptr || !inputs->is_array()) return Fault("'inputs' must be an array");
  std::string_view binary = body.substr(json_end);
  for (const RestJson& input : *inputs) MILLRACE_RETURN_IF_ERROR(ReadInput(input, binary, request));
  if (!binary.empty()) return Fault("the body has ", binary.size(), " bytes beyond its tensors");
  MILLRACE_RETURN_IF_ERROR(ReadOutputs(json, request));
  return request;
}

RestBody InferResponseToRest(const inference::ModelInferRequest& request,
                             const inference::ModelInferResponse& response) {
  RestJson json = {{"model_name", response.model_name()},
                   {"model_version", response.model_version()},
                   {"parameters", ParametersToJson(response.parameters())},
                   {"outputs", RestJson::array()}};
  if (!response.id().empty()) json["id"] = response.id();
  std::string binary;
  bool any_binary = false;
  for (int i = 0; i < response.outputs_size(); ++i) {
    const auto& output = response.outputs(i);
    const std::string& raw = response.raw_output_contents(i);
    RestJson tensor = {{"name", output.name()},
                       {"datatype", output.datatype()},
                       {"shape", std::vector<int64_t>(output.shape().begin(), output.shape().end())}};
    if (WantsBinary(request, output.name())) {
      any_binary = true;
      tensor["parameters"] = {{"binary_data_size", raw.size()}};
      binary += raw;
    } else {
      tensor["data"] = FloatsOf(raw);
    }
    json["outputs"].push_back(std::move(tensor));
  }
  RestBody body{.bytes = json.dump(-1, ' ', false, RestJson::error_handler_t::replace), .json_bytes = {}};
  if (any_binary) body.json_bytes = body.bytes.size();
  body.bytes += binary;
  return body;
}

}  // namespace millrace
