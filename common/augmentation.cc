#include "common/augmentation.h"

#include <array>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

struct Strength {
  absl::string_view name;
  double max;
  double (v1::Augmentation::*get)() const;
  void (v1::Augmentation::*set)(double);
};
constexpr std::array<Strength, 4> kStrengths = {{
    {"shift", 64, &v1::Augmentation::shift, &v1::Augmentation::set_shift},
    {"rotate", 180, &v1::Augmentation::rotate, &v1::Augmentation::set_rotate},
    {"scale", 0.9, &v1::Augmentation::scale, &v1::Augmentation::set_scale},
    {"elastic", 32, &v1::Augmentation::elastic, &v1::Augmentation::set_elastic},
}};

}  // namespace

absl::StatusOr<v1::Augmentation> ParseAugmentation(std::string_view text) {
  v1::Augmentation augmentation;
  if (text == "none") return augmentation;
  for (const absl::string_view item : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
    const Strength* found = nullptr;
    for (const Strength& strength : kStrengths) {
      if (strength.name == parts[0]) found = &strength;
    }
    if (found == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", item, "' is none of shift=..., rotate=..., scale=..., elastic=..., or none alone"));
    }
    double value = 0;
    if (parts.size() != 2 || !absl::SimpleAtod(parts[1], &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", item, "' needs a number, as in ", found->name, "=", found->name == "scale" ? "0.1" : "2"));
    }
    (augmentation.*found->set)(value);
  }
  MILLRACE_RETURN_IF_ERROR(CheckAugmentation(augmentation));
  return augmentation;
}

absl::Status CheckAugmentation(const v1::Augmentation& augmentation) {
  for (const Strength& strength : kStrengths) {
    const double value = (augmentation.*strength.get)();
    if (value >= 0 && value <= strength.max) continue;  // not a number is neither
    return absl::InvalidArgumentError(
        absl::StrCat("augmentation ", strength.name, " ", value, " is not in [0, ", strength.max, "]"));
  }
  return absl::OkStatus();
}

std::string FormatAugmentation(const v1::Augmentation& augmentation) {
  std::string text;
  for (const Strength& strength : kStrengths) {
    const double value = (augmentation.*strength.get)();
    if (value != 0) absl::StrAppend(&text, text.empty() ? "" : ",", strength.name, "=", value);
  }
  return text.empty() ? "none" : text;
}

bool HasEffect(const v1::Augmentation& augmentation) {
  for (const Strength& strength : kStrengths) {
    if ((augmentation.*strength.get)() != 0) return true;
  }
  return false;
}

}  // namespace millrace
