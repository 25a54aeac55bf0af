// How long leases usually take, and from that when one is late.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

class LeaseTimes {
 public:
  // A lease of n units is late after max(`shortest`, `factor` times the median time per unit times n); after `first`
  // while nothing is known.
  LeaseTimes(absl::Duration shortest, absl::Duration first, double factor)
      : shortest_(shortest), first_(first), factor_(factor) {}

  void Add(absl::Duration took, uint32_t units) {
    if (per_unit_.size() < kWindow) {
      per_unit_.push_back(took / units);
    } else {
      per_unit_[next_++ % kWindow] = took / units;
    }
    std::vector<absl::Duration> sorted = per_unit_;
    const auto middle = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    median_ = *middle;
  }

  bool known() const { return !per_unit_.empty(); }
  absl::Duration median() const { return median_; }  // per unit; zero while nothing is known

  absl::Duration LateAfter(uint32_t units) const {
    return known() ? std::max(shortest_, median_ * units * factor_) : first_;
  }

 private:
  static constexpr size_t kWindow = 64;

  const absl::Duration shortest_;
  const absl::Duration first_;
  const double factor_;
  std::vector<absl::Duration> per_unit_;  // the last kWindow
  size_t next_ = 0;
  absl::Duration median_;
};

}  // namespace millrace
