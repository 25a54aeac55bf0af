// Tells from the losses of a job's steps that training has come off the rails, as it does when gradients are too stale
// for the learning rate: a loss that is no number, or a mean of the last steps far above the lowest such mean so far.
//
// Pure; one thread at a time. With losses that are reproducible, so is the verdict.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <limits>
#include <numeric>

namespace millrace {

class DivergenceWatch {
 public:
  static constexpr size_t kWindow = 50;  // steps
  static constexpr double kFactor = 3;

  // The mean loss of the next step. True once, and for every step after, when the job has diverged.
  bool Diverged(double loss) {
    if (diverged_ || !std::isfinite(loss)) return diverged_ = true;
    last_.push_back(loss);
    if (last_.size() < kWindow) return false;
    const double mean = std::accumulate(last_.begin(), last_.end(), 0.0) / static_cast<double>(kWindow);
    last_.pop_front();
    diverged_ = mean > kFactor * lowest_;
    lowest_ = std::min(lowest_, mean);
    return diverged_;
  }

 private:
  std::deque<double> last_;  // at most kWindow
  double lowest_ = std::numeric_limits<double>::infinity();
  bool diverged_ = false;
};

}  // namespace millrace
