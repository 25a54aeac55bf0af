// JSON as the REST protocols have it, within limits, and to and from protobuf messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace millrace {

// Numbers with a fraction are float32, as tensors hold them: written as short as gives the same one back.
using RestJson = nlohmann::basic_json<std::map, std::vector, std::string, bool, int64_t, uint64_t, float>;

struct JsonLimits {
  size_t bytes = size_t{8} << 20;  // of which a number takes two at least, and some twenty times that in memory
  size_t depth = 16;
  size_t containers = size_t{1} << 20;  // arrays and objects: a thousand images, each pixel an array of its own
};

// INVALID_ARGUMENT names the limit, or where the text is no JSON.
absl::StatusOr<RestJson> ParseRestJson(std::string_view text, const JsonLimits& limits = {});

// All fields by their names in the .proto, those of scalars also if they are unset; integers are numbers, unlike in
// protobuf's own mapping. For messages without maps and bytes.
RestJson ToRestJson(const google::protobuf::Message& message);

// The numbers of an array of arrays ... of numbers, in order, and its shape. `is_bytes`: whether all are whole numbers
// from 0 to 255.
struct NumberArray {
  std::vector<float> values;
  std::vector<int64_t> shape;
  bool is_bytes = true;
};
// INVALID_ARGUMENT if something else is in it, or its rows differ in length. A number that is no array has no shape.
absl::StatusOr<NumberArray> ReadNumbers(const RestJson& json);

}  // namespace millrace
