// The one seam at which LibTorch's exceptions become statuses. Includes no LibTorch header: c10::Error is a
// std::exception.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/strings.h"

namespace millrace {

// The first line of an exception's text: the rest of a c10::Error is a stack trace.
inline std::string FirstLine(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

// Runs `work`, which returns an absl::Status or StatusOr, and turns an exception into INTERNAL "<what>: <message>"
// (RESOURCE_EXHAUSTED when memory ran out).
template <typename Work>
auto CatchTorch(std::string_view what, Work&& work) -> std::invoke_result_t<Work> {
  try {
    return std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(ToAbsl(what), ": out of memory"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(ToAbsl(what), ": ", FirstLine(error.what())));
  }
}

}  // namespace millrace
