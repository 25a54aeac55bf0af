#include "services/cli/latency.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(LatencySamplesTest, PercentilesAreNearestRank) {
  LatencySamples samples;
  for (int ms = 100; ms >= 1; --ms) samples.Add(absl::Milliseconds(ms));
  EXPECT_DOUBLE_EQ(samples.PercentileMs(50), 50);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(99), 99);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(99.9), 100);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(100), 100);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(0.001), 1);
}

TEST(LatencySamplesTest, CountsWhatComesAfterAQuery) {
  LatencySamples samples;
  EXPECT_EQ(samples.PercentileMs(50), 0);
  samples.Add(absl::Milliseconds(10));
  EXPECT_DOUBLE_EQ(samples.PercentileMs(50), 10);
  samples.Add(absl::Milliseconds(2));
  EXPECT_DOUBLE_EQ(samples.PercentileMs(50), 2);
  LatencySamples others;
  others.Add(absl::Milliseconds(1));
  samples.Merge(others);
  EXPECT_EQ(samples.count(), 3u);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(33), 1);
  EXPECT_DOUBLE_EQ(samples.PercentileMs(99), 10);
}

}  // namespace
}  // namespace millrace
