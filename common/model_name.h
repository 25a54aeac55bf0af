#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace millrace {

// The one rule for the name of a model, which becomes a directory, part of URLs and a metric label: 1 to 128 letters,
// digits, '_', '-' or '.', beginning with a letter or digit. ASCII only. Pure.
bool IsModelName(std::string_view name);

// INVALID_ARGUMENT that begins with `what` ("--model-name"), quotes the name and states the rule.
absl::Status CheckModelName(std::string_view what, std::string_view name);

}  // namespace millrace
