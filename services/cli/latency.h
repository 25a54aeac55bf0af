#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

// Latencies of a few million requests, kept one by one so that percentiles are exact. Not thread-safe: each caller
// thread has its own, and they are merged at the end.
class LatencySamples {
 public:
  void Add(absl::Duration latency);
  void Merge(const LatencySamples& other);
  uint64_t count() const { return milliseconds_.size(); }

  // Nearest rank: the smallest sample that at least `percent` of the samples do not exceed, in milliseconds. 0 if there
  // are none. `percent` in (0, 100].
  double PercentileMs(double percent);

 private:
  std::vector<double> milliseconds_;
  bool sorted_ = false;
};

}  // namespace millrace
