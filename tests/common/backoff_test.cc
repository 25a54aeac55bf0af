#include "common/backoff.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(BackoffTest, CeilingDoublesUpToTheMaximumWithJitterBelowIt) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Backoff backoff(absl::Milliseconds(100), absl::Seconds(2), seed);
    absl::Duration ceiling = absl::Milliseconds(100);
    for (int i = 0; i < 10; ++i) {
      const absl::Duration wait = backoff.Next();
      ASSERT_GE(wait, ceiling / 2) << "seed " << seed << ", retry " << i;
      ASSERT_LE(wait, ceiling) << "seed " << seed << ", retry " << i;
      ceiling = std::min(ceiling * 2, absl::Seconds(2));
    }
    EXPECT_EQ(ceiling, absl::Seconds(2));
  }
}

TEST(BackoffTest, ResetMakesTheNextWaitShort) {
  Backoff backoff(absl::Milliseconds(100), absl::Seconds(2), 7);
  for (int i = 0; i < 8; ++i) backoff.Next();
  backoff.Reset();
  EXPECT_LE(backoff.Next(), absl::Milliseconds(100));
}

TEST(BackoffTest, ASeedRepeatsAndTheDefaultSeedDoesNot) {
  Backoff a(absl::Seconds(1), absl::Seconds(1), 3), b(absl::Seconds(1), absl::Seconds(1), 3);
  EXPECT_EQ(a.Next(), b.Next());
  Backoff c, d;
  EXPECT_NE(c.Next(), d.Next());  // equal once in 2^24
}

TEST(BackoffTest, AnInitialWaitOverTheMaximumIsCut) {
  Backoff backoff(absl::Seconds(5), absl::Seconds(1), 3);
  EXPECT_LE(backoff.Next(), absl::Seconds(1));
}

}  // namespace
}  // namespace millrace
