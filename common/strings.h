#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace millrace {

// Distributions build Abseil with a string_view of its own, so that absl::StrCat, absl::Status and friends do not take
// std::string_view:  absl::NotFoundError(absl::StrCat("no model ", ToAbsl(name)))
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view ToStd(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace millrace
