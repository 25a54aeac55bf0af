#include "common/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace millrace {
namespace {

class SteadyWallClock : public Clock {
 public:
  absl::Time Now() const override {
    return wall_start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
  }

 private:
  const absl::Time wall_start_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_start_ = std::chrono::steady_clock::now();
};

}  // namespace

const Clock& RealClock() {
  static const SteadyWallClock* const clock = new SteadyWallClock;  // never destroyed: threads may outlive statics
  return *clock;
}

}  // namespace millrace
