// How long a batch of so many rows takes: learnt while serving.
#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace millrace {

// A piecewise linear curve over batch sizes 1, 2, 4 ... 1024, whose points follow what is observed near them as
// exponentially weighted averages. In the spirit of the latency models of Clipper (Crankshaw et al., NSDI 2017) and
// BentoML (latency = a + b n), which are one line; with a point per size, a long spell of single rows does not make it
// forget what a full batch takes.
//
// Threads: none of its own; guard it from outside.
class ServiceTime {
 public:
  // Zero until the first observation; above the largest size in proportion.
  absl::Duration Estimate(uint32_t rows) const;

  // rows >= 1. The first observation is taken for every size: in proportion for larger batches, as it is for smaller.
  void Observe(uint32_t rows, absl::Duration took);

 private:
  static constexpr int kPoints = 11;

  // Observed `ratio` times what was expected, near this point by `share` in (0, 1].
  void Correct(int point, double ratio, double share);

  std::array<double, kPoints> seconds_{};
  std::array<double, kPoints> seen_{};  // observations at the point
  bool known_ = false;
};

}  // namespace millrace
