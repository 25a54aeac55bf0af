#pragma once

#include "absl/time/time.h"

namespace millrace {

// Where a class gets the time from, so that a test can turn the hands (tests/testing/fake_clock.h).
// Safe to use from any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The wall time at which the process first asked, plus the monotonic time since then. It never runs backwards and
// never jumps, so deadlines and leases are safe from NTP steps; over a long life it may drift from the wall by as much
// as the wall was adjusted. Lives as long as the process.
const Clock& RealClock();

}  // namespace millrace
