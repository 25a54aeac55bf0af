// LibTorch's own SGD, Adam and AdamW over the flat range of one shard.
//
// The optimizers work element by element, so a sharded run computes the same bits as an unsharded one, provided that
// shards begin on multiples of 64 elements (kShardAlignment). The range is given to LibTorch as blocks of 32768
// elements: a block and its state stay in the cache through the dozen passes of one update, and a block is below the
// size from which LibTorch splits work among threads, so the number of threads cannot change the bits either.
//
// An update is made chunk by chunk, in any order, so that one chunk's new weights can travel while the next chunk's
// gradient arrives.
//
// Threads: one at a time. Errors: INVALID_ARGUMENT for what a caller gave, INTERNAL for an exception of LibTorch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// Numbers that do not change any more, shared by all copies.
class SharedValues {
 public:
  SharedValues(std::vector<float> values)  // NOLINT(google-explicit-constructor): it only gives them away
      : SharedValues(std::make_shared<const std::vector<float>>(std::move(values))) {}
  // `owner` keeps them alive and unchanged.
  SharedValues(std::span<const float> values, std::shared_ptr<const void> owner)
      : values_(values), owner_(std::move(owner)) {}

  operator std::span<const float>() const { return values_; }  // NOLINT(google-explicit-constructor)
  auto begin() const { return values_.begin(); }
  auto end() const { return values_.end(); }
  size_t size() const { return values_.size(); }
  float operator[](size_t i) const { return values_[i]; }

 private:
  explicit SharedValues(std::shared_ptr<const std::vector<float>> values) : values_(*values), owner_(values) {}

  std::span<const float> values_;
  std::shared_ptr<const void> owner_;
};

// Everything an optimizer remembers besides the weights.
struct OptimizerState {
  uint64_t step = 0;  // updates made so far
  struct Tensor {
    std::string name;     // "exp_avg", "exp_avg_sq" or "momentum_buffer"
    SharedValues values;  // one per element of the range
  };
  std::vector<Tensor> tensors;  // sorted by name; what a fresh optimizer does not have yet is absent
};

// Names of the tensors that the state of `spec` has after `step` updates, sorted.
std::vector<std::string> OptimizerTensorNames(const v1::OptimizerSpec& spec, uint64_t step);

class ShardOptimizer {
 public:
  // For a range of `elements` in chunks of `chunk_elements`, a multiple of 32768 or a smaller one of 64. Only the first
  // `trainable` elements (all, if there are no more) are updated; the rest is left alone, and its state is zero for
  // ever. INVALID_ARGUMENT names the field of `spec` that is out of its range.
  static absl::StatusOr<std::unique_ptr<ShardOptimizer>> Create(const v1::OptimizerSpec& spec, uint64_t elements,
                                                                uint64_t chunk_elements,
                                                                uint64_t trainable = UINT64_MAX);
  ~ShardOptimizer();
  ShardOptimizer(const ShardOptimizer&) = delete;
  ShardOptimizer& operator=(const ShardOptimizer&) = delete;

  uint64_t chunks() const;

  // One update of chunk `chunk` of `weights` in place, at this learning rate (spec.learning_rate is only where a
  // schedule starts from); the rest is left alone. Both spans cover the whole range; either may lie elsewhere at every
  // call. INVALID_ARGUMENT (nothing changed) for spans of another size or no such chunk. After INTERNAL weights and
  // state are undefined.
  absl::Status Step(uint64_t chunk, std::span<float> weights, std::span<const float> gradient, double learning_rate);

  // Requires that every chunk has made the same number of updates. Copies nothing: the optimizer goes on in other
  // memory, into which each chunk's next update takes what it needs. Memory of states that nobody has any more serves
  // again.
  OptimizerState Save();
  // Continues with the bits of the optimizer that was saved. INVALID_ARGUMENT (nothing changed) for other tensors or
  // sizes than this optimizer has after state.step updates.
  absl::Status Load(const OptimizerState& state);

 private:
  struct Impl;
  explicit ShardOptimizer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
