#include "services/model/open_inference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

static_assert(std::endian::native == std::endian::little, "raw tensors are little-endian on the wire");

constexpr char kUint8[] = "UINT8";
constexpr char kFp32[] = "FP32";
constexpr char kSharedMemory[] = "shared_memory_region";

using Tensor = inference::ModelInferRequest::InferInputTensor;
using Contents = inference::InferTensorContents;
using Parameter = inference::InferParameter;

template <typename... Parts>
absl::Status Fault(const ModelInfo& info, absl::string_view kind, const std::string& name, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(kind, " ", name, " of model ", info.model, ": ", parts...));
}

template <typename Shape>
std::string ShapeText(const Shape& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string WithRows(std::string rows, const TensorSpec& spec) {
  std::vector<std::string> shape = {std::move(rows)};
  for (const int64_t size : spec.row_shape) shape.push_back(absl::StrCat(size));
  return ShapeText(shape);
}

std::string Names(const std::vector<TensorSpec>& specs) {
  return absl::StrJoin(specs, ", ", [](std::string* out, const TensorSpec& spec) { out->append(spec.name); });
}

uint64_t Elements(const Contents& contents) {
  return uint64_t{0} + contents.bool_contents_size() + contents.int_contents_size() + contents.int64_contents_size() +
         contents.uint_contents_size() + contents.uint64_contents_size() + contents.fp32_contents_size() +
         contents.fp64_contents_size() + contents.bytes_contents_size();
}

absl::Status CheckInputs(const ModelInfo& info, const TensorSpec& spec, const inference::ModelInferRequest& message) {
  int found = 0;
  for (const Tensor& tensor : message.inputs()) {
    if (tensor.name() != spec.name) {
      return absl::InvalidArgumentError(
          absl::StrCat("model ", info.model, " has no input '", tensor.name(), "'; it takes ", spec.name));
    }
    if (++found > 1) return Fault(info, "input", spec.name, "is given twice");
  }
  if (found == 0) {
    return absl::InvalidArgumentError(absl::StrCat("model ", info.model, " needs the input ", spec.name));
  }
  const int raw = message.raw_input_contents_size();
  if (raw != 0 && raw != message.inputs_size()) {
    return absl::InvalidArgumentError(absl::StrCat("raw_input_contents holds ", raw, " tensors and inputs holds ",
                                                   message.inputs_size(), "; it must hold all of them or none"));
  }
  return absl::OkStatus();
}

// The rows.
absl::StatusOr<uint32_t> CheckShape(const ModelInfo& info, const TensorSpec& spec, const Tensor& tensor) {
  if (tensor.datatype() != kUint8 && tensor.datatype() != kFp32) {
    return Fault(info, "input", spec.name, "datatype '", tensor.datatype(), "' is not taken; UINT8 or FP32 is");
  }
  const auto& shape = tensor.shape();
  const bool fits = shape.size() == static_cast<int>(spec.row_shape.size()) + 1 &&
                    std::equal(spec.row_shape.begin(), spec.row_shape.end(), shape.begin() + 1);
  if (!fits) {
    return Fault(info, "input", spec.name, "shape ", ShapeText(shape), " does not fit ", WithRows("-1", spec));
  }
  if (shape[0] < 1 || shape[0] > kPredictRowsMax) {
    return Fault(info, "input", spec.name, "shape ", ShapeText(shape), " has ", shape[0],
                 " rows, which must be in [1, ", kPredictRowsMax, "]");
  }
  return static_cast<uint32_t>(shape[0]);
}

absl::Status CheckFinite(const ModelInfo& info, const TensorSpec& spec, std::span<const float> values) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad == values.end()) return absl::OkStatus();
  return Fault(info, "input", spec.name, "element ", bad - values.begin(), " is a NaN or an infinity");
}

std::span<const uint8_t> BytesOf(std::span<const float> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

absl::Status TakeRaw(const ModelInfo& info, const TensorSpec& spec, const Tensor& tensor, const std::string& raw,
                     OpenInference& result) {
  if (Elements(tensor.contents()) > 0) return Fault(info, "input", spec.name, "has raw_input_contents and contents");
  InferenceRequest& request = result.request;
  const uint64_t expected = RowBytes(info, request) * request.rows;
  if (raw.size() != expected) {
    return Fault(info, "input", spec.name, tensor.datatype(), " ", ShapeText(tensor.shape()), " takes ", expected,
                 " bytes, got ", raw.size());
  }
  request.input = {reinterpret_cast<const uint8_t*>(raw.data()), raw.size()};
  if (request.kind != InferenceRequest::Kind::kFloats) return absl::OkStatus();
  result.floats.resize(raw.size() / sizeof(float));  // where they are, they need not be aligned
  std::memcpy(result.floats.data(), raw.data(), raw.size());
  request.input = BytesOf(result.floats);
  return CheckFinite(info, spec, result.floats);
}

absl::Status TakeTyped(const ModelInfo& info, const TensorSpec& spec, const Tensor& tensor, OpenInference& result) {
  if (tensor.parameters().contains(kSharedMemory)) {
    return Fault(info, "input", spec.name, "shared memory is not offered; send the contents");
  }
  InferenceRequest& request = result.request;
  const Contents& contents = tensor.contents();
  const bool floats = request.kind == InferenceRequest::Kind::kFloats;
  const auto given = static_cast<uint64_t>(floats ? contents.fp32_contents_size() : contents.uint_contents_size());
  const char* field = floats ? "fp32_contents" : "uint_contents";
  if (Elements(contents) > given) {
    return Fault(info, "input", spec.name, "contents of datatype ", tensor.datatype(), " belong in ", field, " alone");
  }
  const uint64_t expected = info.input.bytes() * request.rows;
  if (given != expected) {
    return Fault(info, "input", spec.name, tensor.datatype(), " ", ShapeText(tensor.shape()), " takes ", expected,
                 " elements in ", field, " or as many in raw_input_contents, got ", given);
  }
  if (floats) {
    result.floats.assign(contents.fp32_contents().begin(), contents.fp32_contents().end());
    request.input = BytesOf(result.floats);
    return CheckFinite(info, spec, result.floats);
  }
  result.bytes.reserve(expected);
  for (const uint32_t value : contents.uint_contents()) {
    if (value > 255) {
      return Fault(info, "input", spec.name, "element ", result.bytes.size(), " is ", value, ", over the limit of 255");
    }
    result.bytes.push_back(static_cast<uint8_t>(value));
  }
  request.input = result.bytes;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TensorSpec>> TakeOutputs(const ModelInfo& info,
                                                    const inference::ModelInferRequest& message) {
  std::vector<TensorSpec> all = OutputsOf(info);
  if (message.outputs().empty()) return all;
  std::vector<TensorSpec> outputs;
  for (const auto& wanted : message.outputs()) {
    const auto is_wanted = [&](const TensorSpec& spec) { return spec.name == wanted.name(); };
    const auto found = std::find_if(all.begin(), all.end(), is_wanted);
    if (found == all.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("model ", info.model, " has no output '", wanted.name(), "'; it has ", Names(all)));
    }
    if (std::any_of(outputs.begin(), outputs.end(), is_wanted)) {
      return Fault(info, "output", wanted.name(), "is asked for twice");
    }
    if (wanted.parameters().contains(kSharedMemory)) {
      return Fault(info, "output", wanted.name(), "shared memory is not offered");
    }
    outputs.push_back(*found);
  }
  return outputs;
}

absl::Status TakeParameters(const google::protobuf::Map<std::string, Parameter>& parameters, absl::Time now,
                            InferenceRequest& request) {
  if (const auto found = parameters.find("deterministic"); found != parameters.end()) {
    if (!found->second.has_bool_param()) return absl::InvalidArgumentError("parameter deterministic must be a bool");
    request.deterministic = found->second.bool_param();
  }
  if (const auto found = parameters.find("timeout"); found != parameters.end()) {
    const Parameter& timeout = found->second;
    if ((!timeout.has_int64_param() && !timeout.has_uint64_param()) || timeout.int64_param() < 0) {
      return absl::InvalidArgumentError("parameter timeout must be a number of microseconds, 0 or more");
    }
    // Beyond a day it is none, and cannot overflow.
    const uint64_t microseconds =
        timeout.has_int64_param() ? static_cast<uint64_t>(timeout.int64_param()) : timeout.uint64_param();
    if (microseconds > 0 && microseconds < 86'400'000'000) {
      request.deadline = std::min(request.deadline, now + absl::Microseconds(microseconds));
    }
  }
  if (const auto found = parameters.find("key"); found != parameters.end()) {
    if (!found->second.has_string_param()) return absl::InvalidArgumentError("parameter key must be a string");
    request.key = found->second.string_param();
  }
  return absl::OkStatus();
}

void FillParameters(const ModelInfo& info, const InferenceAnswer& answer,
                    google::protobuf::Map<std::string, Parameter>& parameters) {
  const auto set = [&](const char* name, int64_t value) { parameters[name].set_int64_param(value); };
  set("version", static_cast<int64_t>(info.version));
  set("step", static_cast<int64_t>(info.step));
  parameters["digest"].set_string_param(info.digest);
  set("queue_microseconds", absl::ToInt64Microseconds(answer.queue));
  set("compute_microseconds", absl::ToInt64Microseconds(answer.compute));
  set("batch_rows", answer.batch_rows);
}

}  // namespace

uint64_t TensorSpec::row_values() const {
  uint64_t values = 1;
  for (const int64_t size : row_shape) values *= static_cast<uint64_t>(size);
  return values;
}

TensorSpec InputOf(const ModelInfo& info) {
  return {
      .name = "INPUT__0", .datatype = kUint8, .row_shape = {info.input.channels, info.input.height, info.input.width}};
}

std::vector<TensorSpec> OutputsOf(const ModelInfo& info) {
  if (info.classes > 0) return {{.name = "OUTPUT__0", .datatype = kFp32, .row_shape = {info.classes}}};
  return {{.name = "OUTPUT__0", .datatype = kFp32, .row_shape = InputOf(info).row_shape},
          {.name = "OUTPUT__1", .datatype = kFp32, .row_shape = {1}, .first_value = info.input.bytes()}};
}

absl::StatusOr<uint64_t> ParseModelVersion(std::string_view text) {
  uint64_t version = 0;
  if (text.empty()) return version;
  if (!std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
      !absl::SimpleAtoi(ToAbsl(text), &version)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model version '", ToAbsl(text), "' is not a number, nor stable or canary"));
  }
  if (version == 0) return absl::NotFoundError("there is no version 0");
  return version;
}

absl::StatusOr<OpenInference> ToInference(const ModelInfo& info, const inference::ModelInferRequest& message,
                                          absl::Time now, absl::Time deadline) {
  OpenInference result;
  result.id = message.id();
  result.request.deadline = deadline;
  result.request.any_version = message.model_version().empty();
  MILLRACE_RETURN_IF_ERROR(TakeParameters(message.parameters(), now, result.request));
  const TensorSpec spec = InputOf(info);
  MILLRACE_RETURN_IF_ERROR(CheckInputs(info, spec, message));
  const Tensor& tensor = message.inputs(0);
  MILLRACE_ASSIGN_OR_RETURN(result.request.rows, CheckShape(info, spec, tensor));
  if (tensor.datatype() == kFp32) result.request.kind = InferenceRequest::Kind::kFloats;
  result.raw = message.raw_input_contents_size() > 0;
  MILLRACE_RETURN_IF_ERROR(result.raw ? TakeRaw(info, spec, tensor, message.raw_input_contents(0), result)
                                      : TakeTyped(info, spec, tensor, result));
  MILLRACE_ASSIGN_OR_RETURN(result.outputs, TakeOutputs(info, message));
  return result;
}

void FillResponse(const ModelInfo& info, const OpenInference& inference, const InferenceAnswer& answer,
                  inference::ModelInferResponse* response) {
  response->set_model_name(info.model);
  response->set_model_version(absl::StrCat(info.version));
  response->set_id(inference.id);
  FillParameters(info, answer, *response->mutable_parameters());
  for (const TensorSpec& spec : inference.outputs) {
    auto* output = response->add_outputs();
    output->set_name(spec.name);
    output->set_datatype(spec.datatype);
    output->add_shape(answer.rows);
    for (const int64_t size : spec.row_shape) output->add_shape(size);
    const uint64_t row_values = spec.row_values();
    std::string* raw = inference.raw ? response->add_raw_output_contents() : nullptr;
    if (raw != nullptr) raw->reserve(answer.rows * row_values * sizeof(float));
    for (uint32_t row = 0; row < answer.rows; ++row) {
      const float* begin = answer.values.data() + row * info.values_per_row() + spec.first_value;
      if (raw != nullptr) {
        raw->append(reinterpret_cast<const char*>(begin), row_values * sizeof(float));
      } else {
        output->mutable_contents()->mutable_fp32_contents()->Add(begin, begin + row_values);
      }
    }
  }
}

}  // namespace millrace
