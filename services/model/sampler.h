#pragma once

#include <atomic>
#include <cstdint>

namespace millrace {

// Takes a fraction of what comes, spread evenly and in step with no period (multiples of the golden ratio, modulo 1).
// Any thread; one atomic addition.
class Sampler {
 public:
  // fraction: [0, 1]
  explicit Sampler(double fraction)
      : all_(fraction >= 1), limit_(all_ ? 0 : static_cast<uint64_t>(fraction * 0x1p64)) {}

  bool Take() { return all_ || next_.fetch_add(kStep, std::memory_order_relaxed) < limit_; }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio

  const bool all_;
  const uint64_t limit_;
  std::atomic<uint64_t> next_{kStep};
};

}  // namespace millrace
