// What the gradients of some steps came to: the checksum of every slot (UnitResult.checksum), which is the same
// whenever the step is made again. The parameter server keeps those of the steps before a checkpoint inside the
// checkpoint's directory; `millrace replay` makes the steps again and compares.
//
// As a file it is text, so that `diff` of two runs' files finds the first step that differs:
//   millrace-slot-checksums 1
//   812 9f86d081884c7d65 60303ae22b998861
//   813 ...
// One line a step, without gaps, and one number a slot: 16 lower-case hexadecimal digits.
//
// Threads: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

inline constexpr char kSlotChecksumsFile[] = "slot-checksums.txt";
// In one file. A job that makes more between two checkpoints keeps those of the newest steps.
inline constexpr size_t kSlotChecksumsMax = size_t{4} << 20;
inline constexpr size_t kSlotChecksumsFileBytesMax = size_t{256} << 20;

struct SlotChecksums {
  uint64_t first_step = 0;
  uint32_t slots = 0;            // of a step; at least 1 unless empty
  std::vector<uint64_t> values;  // step after step, slot after slot

  bool empty() const { return values.empty(); }
  uint64_t end_step() const { return empty() ? first_step : first_step + values.size() / slots; }
  bool Has(uint64_t step) const { return step >= first_step && step < end_step(); }
  // Requires Has(step).
  std::span<const uint64_t> Of(uint64_t step) const {
    return std::span(values).subspan((step - first_step) * slots, slots);
  }
  bool operator==(const SlotChecksums&) const = default;
};

std::string SlotChecksumsToText(const SlotChecksums& checksums);

// DATA_LOSS that names the line for whatever SlotChecksumsToText would not have written; UNIMPLEMENTED for another
// format. Never more than kSlotChecksumsMax values.
absl::StatusOr<SlotChecksums> SlotChecksumsFromText(std::string_view text);

}  // namespace millrace
