// What --augment says: the strengths of an Augmentation (data.proto) as text, and their limits. Pure.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// "shift=2,rotate=10,scale=0.1,elastic=4", any of them in any order, or "none". INVALID_ARGUMENT names what is wrong.
absl::StatusOr<v1::Augmentation> ParseAugmentation(std::string_view text);

// INVALID_ARGUMENT names the field, its value and its limits.
absl::Status CheckAugmentation(const v1::Augmentation& augmentation);

// In the form that ParseAugmentation reads.
std::string FormatAugmentation(const v1::Augmentation& augmentation);

// Whether images are changed at all.
bool HasEffect(const v1::Augmentation& augmentation);

}  // namespace millrace
