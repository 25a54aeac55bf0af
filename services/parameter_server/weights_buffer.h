// Buffers that hold one version of the weights each: written by the optimizer, then read by whoever sends them.
//
// A version is published when it is complete and never changes while anyone holds it. The next step writes into the
// same buffer if nobody does any more (the usual case, no copy), else into another one that starts as a copy.
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

// Threads: one at a time; the versions it hands out are free-threaded and may outlive it.
class WeightsPool {
 public:
  WeightsPool(uint64_t version, std::span<const float> values);

  const WeightsVersion& current() const { return current_; }

  // A buffer with the current values that only the caller can see, to be changed and then published. The versions
  // handed out before stay as they are. Every call must be followed by Publish.
  std::span<float> BeginNext();
  void Publish(uint64_t version);

  // Makes the copy that the next BeginNext would make, at a time that suits better. For when versions are held anyway.
  void PrepareNext();

 private:
  // `held` is cleared (release) when the last holder of the published version lets go, and read (acquire) before the
  // buffer is written again: use_count() would give no such ordering.
  struct Buffer {
    AlignedBuffer<float> values;
    std::atomic<bool> held{false};
  };

  static bool IsFree(const Buffer& buffer) { return !buffer.held.load(std::memory_order_acquire); }
  std::shared_ptr<Buffer> CopyToSpare();  // the values of buffer_, in a buffer that nobody holds

  std::vector<std::shared_ptr<Buffer>> buffers_;
  std::shared_ptr<Buffer> prepared_;  // a copy of buffer_, or null
  std::shared_ptr<Buffer> buffer_;    // of the current version, or between BeginNext and Publish of the next one
  WeightsVersion current_;
};

}  // namespace millrace
