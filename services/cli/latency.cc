#include "services/cli/latency.h"

#include <algorithm>
#include <cmath>

namespace millrace {

void LatencySamples::Add(absl::Duration latency) {
  milliseconds_.push_back(absl::ToDoubleMilliseconds(latency));
  sorted_ = false;
}

void LatencySamples::Merge(const LatencySamples& other) {
  milliseconds_.insert(milliseconds_.end(), other.milliseconds_.begin(), other.milliseconds_.end());
  sorted_ = false;
}

double LatencySamples::PercentileMs(double percent) {
  if (milliseconds_.empty()) return 0;
  if (!sorted_) {
    std::sort(milliseconds_.begin(), milliseconds_.end());
    sorted_ = true;
  }
  const double rank = std::ceil(percent / 100 * static_cast<double>(milliseconds_.size()));
  const auto index = static_cast<size_t>(std::max(rank, 1.0)) - 1;
  return milliseconds_[std::min(index, milliseconds_.size() - 1)];
}

}  // namespace millrace
