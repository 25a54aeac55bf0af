// Buffers that hold one version of the weights each: written by the optimizer, then read by whoever sends them.
//
//   WeightsDraft next = pool.Begin(8);
//   ... write next.values, front to back, and next.Finish(...) what is final: it may be read through next.weights ...
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
#include "common/tensor/wire.h"

namespace millrace {

// An immutable version of a shard's weights; may be copied and read on any thread.
struct WeightsVersion {
  uint64_t version = 0;
  std::span<const float> values;
  v1::NumberFormat format{};  // of `wire`
  // The same as they travel: `values` themselves unless the number format is narrow. Empty if they come from a disk.
  std::span<const std::byte> wire;
  std::shared_ptr<const void> owner;  // keeps all of it alive and unchanged

  // Of elements [begin, end), `begin` a multiple of kNumbersTogether, and `end` too unless it is the last.
  WireValues Travelling(uint64_t begin, uint64_t end) const {
    const size_t first = EncodedBytes(format, begin);
    return {wire.subspan(first, EncodedBytes(format, end) - first), owner};
  }
};

// A version that is being made. Others may hold `weights` already; what they may read of it is the writer's to say.
struct WeightsDraft {
  std::span<float> values;
  WeightsVersion weights;     // the same memory
  std::span<std::byte> wire;  // empty unless the format is narrow

  // Elements [begin, end) of `values`, cut as for Travelling, will not change any more: makes them ready to travel.
  void Finish(uint64_t begin, uint64_t end) const;
  // All of them are these.
  void Fill(std::span<const float> all) const;
};

// Threads: one at a time; the versions it hands out are free-threaded and may outlive it.
class WeightsPool {
 public:
  WeightsPool(uint64_t version, std::span<const float> values, v1::NumberFormat wire = v1::NUMBER_FORMAT_UNSPECIFIED);

  const WeightsVersion& current() const { return current_; }

  // A buffer with any values, to be written and then published as `version`.
  WeightsDraft Begin(uint64_t version);
  void Publish(const WeightsDraft& draft) { current_ = draft.weights; }

 private:
  // `held` is cleared (release) when the last holder of the version lets go, and read (acquire) before the buffer is
  // written again: use_count() would give no such ordering.
  struct Buffer {
    AlignedBuffer<float> values;
    AlignedBuffer<std::byte> wire;
    std::atomic<bool> held{false};
  };

  const size_t elements_;
  const v1::NumberFormat wire_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
  WeightsVersion current_;
};

}  // namespace millrace
