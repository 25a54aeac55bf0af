#include "services/parameter_server/divergence_watch.h"

#include <cmath>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(DivergenceWatchTest, LearningAndItsNoiseAreNoDivergence) {
  DivergenceWatch watch;
  for (int step = 0; step < 1000; ++step) {
    const double noise = step % 7 == 0 ? 2.5 : 0.8;
    ASSERT_FALSE(watch.Diverged(noise * (0.1 + 2.3 * std::exp(-step / 100.0)))) << step;
  }
}

TEST(DivergenceWatchTest, ALossThatStaysFarAboveTheLowestIs) {
  DivergenceWatch watch;
  for (int step = 0; step < 200; ++step) ASSERT_FALSE(watch.Diverged(0.1));
  int steps = 1;
  while (!watch.Diverged(0.5) && steps < 100) ++steps;
  EXPECT_GT(steps, 10) << "a few bad steps say nothing";
  EXPECT_LT(steps, 50);
  EXPECT_TRUE(watch.Diverged(0.1)) << "once is for good";
}

TEST(DivergenceWatchTest, ALossThatIsNoNumberIs) {
  EXPECT_TRUE(DivergenceWatch().Diverged(std::nan("")));
  EXPECT_TRUE(DivergenceWatch().Diverged(INFINITY));
}

}  // namespace
}  // namespace millrace
