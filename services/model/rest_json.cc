#include "services/model/rest_json.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Before anything is allocated for it.
absl::Status CheckLimits(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the JSON has ", text.size(), " bytes, over the limit of ", limits.bytes));
  }
  size_t depth = 0, containers = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') {
      ++containers;
      ++depth;
    }
    if ((c == ']' || c == '}') && depth > 0) --depth;
    if (depth > limits.depth) {
      return absl::InvalidArgumentError(absl::StrCat("the JSON is nested deeper than the limit of ", limits.depth));
    }
  }
  if (containers > limits.containers) {
    return absl::InvalidArgumentError(
        absl::StrCat("the JSON has ", containers, " arrays and objects, over the limit of ", limits.containers));
  }
  return absl::OkStatus();
}

RestJson FieldToJson(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection->GetFloat(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return static_cast<float>(reflection->GetDouble(message, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->GetEnum(message, field)->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetString(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToRestJson(reflection->GetMessage(message, field));
  }
  return nullptr;
}

RestJson ElementToJson(const Message& message, const FieldDescriptor* field, int i) {
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->GetRepeatedInt64(message, field, i);
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetRepeatedString(message, field, i);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToRestJson(reflection->GetRepeatedMessage(message, field, i));
    default:
      return nullptr;  // of no message here
  }
}

// Depth: that of the JSON.
absl::Status Gather(const RestJson& json, size_t level, NumberArray& result) {
  if (!json.is_array()) {
    if (!json.is_number()) {
      return absl::InvalidArgumentError(absl::StrCat("a ", json.type_name(), " is where a number should be"));
    }
    if (level != result.shape.size()) return absl::InvalidArgumentError("rows of numbers differ in their dimensions");
    const float value = json.get<float>();
    result.is_bytes = result.is_bytes && json.is_number_integer() && value >= 0 && value <= 255;
    result.values.push_back(value);
    return absl::OkStatus();
  }
  const auto size = static_cast<int64_t>(json.size());
  // The first of each level says how long they are.
  if (level == result.shape.size() && result.values.empty()) result.shape.push_back(size);
  if (level >= result.shape.size() || result.shape[level] != size) {
    return absl::InvalidArgumentError("rows of numbers differ in length");
  }
  for (const RestJson& element : json) MILLRACE_RETURN_IF_ERROR(Gather(element, level + 1, result));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RestJson> ParseRestJson(std::string_view text, const JsonLimits& limits) {
  MILLRACE_RETURN_IF_ERROR(CheckLimits(text, limits));
  try {
    return RestJson::parse(text);
  } catch (const RestJson::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
}

RestJson ToRestJson(const Message& message) {
  RestJson json = RestJson::object();
  const Reflection* reflection = message.GetReflection();
  const google::protobuf::Descriptor* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated()) {
      RestJson array = RestJson::array();
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) array.push_back(ElementToJson(message, field, j));
      json[field->name()] = std::move(array);
    } else if (!field->has_presence() || reflection->HasField(message, field)) {
      json[field->name()] = FieldToJson(message, field);
    }
  }
  return json;
}

absl::StatusOr<NumberArray> ReadNumbers(const RestJson& json) {
  NumberArray result;
  MILLRACE_RETURN_IF_ERROR(Gather(json, 0, result));
  return result;
}

}  // namespace millrace
