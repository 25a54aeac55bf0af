// Adds the gradients of a lease's slots in the fixed tree (DESIGN D1), touching each value as rarely as possible: a
// slot that has its left sibling waiting is added straight into it, and its checksum is taken in the same pass. If the
// job's gradients travel in a narrow number format, every node is rounded to it, as on the shards (number_format.h); a
// slot is then copied and rounded before it is added.
//
//   GradientSum sum(parameter_count);
//   sum.Begin(plan.spec().slots());
//   for (slot = lease.begin(); slot < lease.end(); ++slot) checksum = sum.Add(slot, replica.gradient());
//   push.gradient = sum.Finish();
//
// Threads: one at a time, but what Finish returned may be released on any thread, also after the GradientSum is gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/hashing.h"
#include "common/tensor/number_format.h"
#include "common/tensor/slot_tree.h"

namespace millrace {

class GradientSum {
 public:
  explicit GradientSum(size_t parameter_count, v1::NumberFormat wire = v1::NUMBER_FORMAT_UNSPECIFIED);
  ~GradientSum();
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;

  // Starts a lease of a job with that many slots; what was not finished is dropped.
  void Begin(uint32_t slots);

  // Adds one slot: `pieces` concatenated are its flat gradient. Slots must come one after the other. Returns the
  // XXH3-64 of the slot's gradient, before any rounding.
  uint64_t Add(uint32_t slot, std::span<const std::span<const float>> pieces);

  // The sum. The slots added since Begin must be one node of the tree.
  std::shared_ptr<const AlignedBuffer<float>> Finish();

 private:
  class Pool;
  struct Partial {
    SlotNode node;
    std::shared_ptr<AlignedBuffer<float>> sum;
  };

  void MergeSiblings();

  const v1::NumberFormat wire_;
  const std::shared_ptr<Pool> pool_;
  uint32_t slots_ = 0;
  std::vector<Partial> partials_;  // nodes from left to right, none the sibling of its neighbour
  Checksum checksum_;
};

}  // namespace millrace
