#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// Names one batch under a BatchPlan: the samples of one slot of one step.
struct BatchKey {
  v1::Split split = v1::SPLIT_UNSPECIFIED;
  uint64_t epoch = 0;  // 0 for validation and test
  uint64_t step = 0;   // within the epoch
  uint32_t slot = 0;   // 0 for validation and test

  auto operator<=>(const BatchKey&) const = default;

  // "train epoch 2 step 81 slot 5", "test step 3".
  std::string ToString() const {
    switch (split) {
      case v1::SPLIT_TRAIN:
        return absl::StrCat("train epoch ", epoch, " step ", step, " slot ", slot);
      case v1::SPLIT_VALIDATION:
        return absl::StrCat("validation step ", step);
      case v1::SPLIT_TEST:
        return absl::StrCat("test step ", step);
      default:
        return "no batch";
    }
  }
};

}  // namespace millrace
