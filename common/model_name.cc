#include "common/model_name.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr size_t kBytesMax = 128;

}  // namespace

bool IsModelName(std::string_view name) {
  return !name.empty() && name.size() <= kBytesMax && absl::ascii_isalnum(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '-' || c == '.'; });
}

absl::Status CheckModelName(std::string_view what, std::string_view name) {
  if (IsModelName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(what), " \"", ToAbsl(name), "\" must be 1 to ", kBytesMax,
                   " letters, digits, '_', '-' or '.', beginning with a letter or digit"));
}

}  // namespace millrace
