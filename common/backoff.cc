#include "common/backoff.h"

#include <algorithm>

namespace millrace {

Backoff::Backoff(absl::Duration initial, absl::Duration max, uint64_t seed)
    : initial_(std::min(initial, max)), max_(max), ceiling_(initial_), random_(seed, /*stream=*/0) {}

absl::Duration Backoff::Next() {
  const absl::Duration wait = ceiling_ * (0.5 + 0.5 * random_.NextUniform());
  ceiling_ = std::min(ceiling_ * 2, max_);
  return wait;
}

}  // namespace millrace
