#include "common/clock.h"

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_clock.h"

namespace millrace {
namespace {

TEST(RealClockTest, IsCloseToTheWallAndNeverRunsBackwards) {
  absl::Time last = RealClock().Now();
  EXPECT_LT(absl::AbsDuration(last - absl::Now()), absl::Seconds(1));
  for (int i = 0; i < 1000; ++i) {
    const absl::Time now = RealClock().Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(FakeClockTest, MovesOnlyWhenTold) {
  FakeClock clock;
  const absl::Time start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now(), start + absl::Seconds(3));
  clock.Set(start);
  EXPECT_EQ(clock.Now(), start);
}

}  // namespace
}  // namespace millrace
