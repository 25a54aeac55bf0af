#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "common/random.h"

namespace millrace {

// How long to wait before each retry: a ceiling that doubles from `initial` to `max`, and a uniformly drawn half to
// whole of it, so that peers that failed together do not come back together. Not thread-safe.
//
//   Backoff backoff;
//   while (!Connect().ok()) WaitFor(backoff.Next());
//   backoff.Reset();
class Backoff {
 public:
  static constexpr absl::Duration kDefaultInitial = absl::Milliseconds(100);
  static constexpr absl::Duration kDefaultMax = absl::Seconds(2);

  // `seed` makes the sequence repeatable.
  explicit Backoff(absl::Duration initial = kDefaultInitial, absl::Duration max = kDefaultMax,
                   uint64_t seed = RandomSeed());

  // In [ceiling / 2, ceiling], and never over `max`.
  absl::Duration Next();

  // After a success: the next wait is short again.
  void Reset() { ceiling_ = initial_; }

 private:
  const absl::Duration initial_;
  const absl::Duration max_;
  absl::Duration ceiling_;
  PhiloxStream random_;
};

}  // namespace millrace
