// Buffers that hold one version of the weights each: written by the optimizer, then read by whoever sends them.
//
//   WeightsDraft next = pool.Begin(8);
//   ... write next.values, front to back; what is final may be read through next.weights ...
//   pool.Publish(next);                  // pool.current() is version 8
//
// A version never changes once it is published, nor does the one before it while the next is written; a buffer is used
// again when nobody holds its version any more.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/aligned_buffer.h"

namespace millrace {

// An immutable version of a shard's weights; may be copied and read on any thread.
struct WeightsVersion {
  uint64_t version = 0;
  std::span<const float> values;
  std::shared_ptr<const void> owner;  // keeps `values` alive and unchanged
};

// A version that is being made. Others may hold `weights` already; what they may read of it is the writer's to say.
struct WeightsDraft {
  std::span<float> values;
  WeightsVersion weights;  // the same memory
};

// Threads: one at a time; the versions it hands out are free-threaded and may outlive it.
class WeightsPool {
 public:
  WeightsPool(uint64_t version, std::span<const float> values);

  const WeightsVersion& current() const { return current_; }

  // A buffer with any values, to be written and then published as `version`.
  WeightsDraft Begin(uint64_t version);
  void Publish(const WeightsDraft& draft) { current_ = draft.weights; }

 private:
  // `held` is cleared (release) when the last holder of the version lets go, and read (acquire) before the buffer is
  // written again: use_count() would give no such ordering.
  struct Buffer {
    AlignedBuffer<float> values;
    std::atomic<bool> held{false};
  };

  const size_t elements_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
  WeightsVersion current_;
};

}  // namespace millrace
