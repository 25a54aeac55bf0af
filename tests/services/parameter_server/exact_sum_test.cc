#include "services/parameter_server/exact_sum.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/random.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

// Squares of floats of every magnitude there is.
std::vector<double> Terms(uint64_t seed, size_t count) {
  PhiloxStream random(seed, 0);
  std::vector<double> terms(count);
  for (double& term : terms) {
    const int exponent = static_cast<int>(random.NextUint32() % 276) - 149;
    const double value = static_cast<float>(std::ldexp(0.5 + random.NextUniform() / 2, exponent));
    term = value * value;
  }
  return terms;
}

ExactSum SumOf(std::span<const double> terms) {
  ExactSum sum;
  for (const double term : terms) sum.Add(term);
  return sum;
}

TEST(ExactSumTest, AnyOrderAndAnyGroupingGiveTheSameBits) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::vector<double> terms = Terms(seed, 100);
    const ExactSum expected = SumOf(terms);
    std::sort(terms.begin(), terms.end());
    EXPECT_EQ(SumOf(terms), expected) << "seed " << seed;
    std::reverse(terms.begin(), terms.end());
    EXPECT_EQ(SumOf(terms), expected) << "seed " << seed;
    const size_t cut = seed % 100;
    ExactSum parts = SumOf(std::span(terms).subspan(cut));
    parts.Add(SumOf(std::span(terms).first(cut)));
    EXPECT_EQ(parts, expected) << "seed " << seed;
    EXPECT_EQ(ExactSum(parts.limbs()), expected) << "seed " << seed;
  }
}

TEST(ExactSumTest, IsTheSumWhereADoubleCanHoldIt) {
  EXPECT_EQ(ExactSum().Round(), 0);
  EXPECT_EQ(SumOf(std::vector<double>{0}).Round(), 0);
  EXPECT_EQ(SumOf(std::vector<double>(1000, 0.375)).Round(), 375);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    for (const double term : Terms(seed, 20)) EXPECT_EQ(SumOf(std::vector<double>{term}).Round(), term);
  }
  const double smallest = std::pow(static_cast<double>(std::numeric_limits<float>::denorm_min()), 2);
  const double largest = std::pow(static_cast<double>(std::numeric_limits<float>::max()), 2);
  EXPECT_EQ(SumOf(std::vector<double>{smallest}).Round(), smallest);
  EXPECT_EQ(SumOf(std::vector<double>(4096, largest)).Round(), 4096 * largest);
}

TEST(ExactSumTest, LosesNothingThatADoubleWouldLose) {
  // 1 + 2^-60, 2^60 times the second: as doubles the ones would vanish.
  ExactSum sum = SumOf(std::vector<double>{1});
  ExactSum tiny = SumOf(std::vector<double>{std::ldexp(1.0, -60)});
  for (int doubling = 0; doubling < 60; ++doubling) tiny.Add(ExactSum(tiny));
  sum.Add(tiny);
  EXPECT_EQ(sum.Round(), 2);
}

TEST(ExactSumTest, CarriesThroughManyLimbs) {
  // 2^64 - 2^-64 and another 2^-64 make a single bit.
  ExactSum sum;
  for (int exponent = -64; exponent < 64; ++exponent) sum.Add(std::ldexp(1.0, exponent));
  sum.Add(std::ldexp(1.0, -64));
  EXPECT_EQ(sum, SumOf(std::vector<double>{std::ldexp(1.0, 64)}));
  EXPECT_EQ(sum.Round(), std::ldexp(1.0, 64));
}

TEST(ExactSumTest, RoundsAsDoublesOfTheSameTermsNearlyDo) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::vector<double> terms = Terms(seed, 1000);
    const double plain = std::accumulate(terms.begin(), terms.end(), 0.0);
    EXPECT_NEAR(SumOf(terms).Round() / plain, 1, 1e-12) << "seed " << seed;
  }
}

}  // namespace
}  // namespace millrace
