// Remembers what the slots of each completed step came to until a checkpoint holds it. Pure.
//
// Each checkpoint gets the checksums of the steps since the newest version that was committed when it was due: so what
// belongs to a step lies in the first checkpoint after it, also if the checkpoint that was due first failed; it goes
// when that checkpoint is pruned, and steps that are made again after a recovery leave no stale records.
//
// Threads: one at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>

#include "common/slot_checksums.h"

namespace millrace {

class SlotRecorder {
 public:
  // A run begins at `version`, which is committed or 0: what there was is forgotten.
  void Begin(uint64_t version) {
    first_step_ = version;
    values_.clear();
  }

  // Steps come in order. Beyond the limit of a file the oldest are forgotten.
  void Add(std::span<const uint64_t> checksums) {
    slots_ = static_cast<uint32_t>(checksums.size());
    values_.insert(values_.end(), checksums.begin(), checksums.end());
    while (values_.size() > kSlotChecksumsMax) DropFirst();
  }

  // What is remembered of the steps before `version`.
  SlotChecksums Before(uint64_t version) const {
    SlotChecksums checksums{.first_step = first_step_, .slots = slots_, .values = {}};
    if (version > first_step_) {
      const uint64_t count = std::min<uint64_t>((version - first_step_) * slots_, values_.size());
      checksums.values.assign(values_.begin(), values_.begin() + static_cast<std::ptrdiff_t>(count));
    }
    return checksums;
  }

  // A checkpoint of `version` holds what came before it.
  void Committed(uint64_t version) {
    while (first_step_ < version && !values_.empty()) DropFirst();
  }

 private:
  void DropFirst() {
    values_.erase(values_.begin(), values_.begin() + slots_);
    ++first_step_;
  }

  uint64_t first_step_ = 0;
  uint32_t slots_ = 0;
  std::deque<uint64_t> values_;
};

}  // namespace millrace
