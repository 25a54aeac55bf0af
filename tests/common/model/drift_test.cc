#include "common/model/drift.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace millrace {
namespace {

uint64_t Total(std::span<const uint64_t> counts) {
  uint64_t total = 0;
  for (const uint64_t count : counts) total += count;
  return total;
}

TEST(DistributionTest, CountsRowsByClassConfidenceAndInk) {
  Distribution counted{.classes = std::vector<uint64_t>(3)};
  const std::vector<float> answers = {0.1f, 0.3f, 0.6f, 0.96f, 0.02f, 0.02f, 0.0f, 0.0f, 1.0f};
  const std::vector<uint8_t> pixels = {0, 0, 255, 255, 26, 26};
  counted.Add(answers, std::span(pixels), 3);
  EXPECT_EQ(counted.rows, 3u);
  EXPECT_EQ(counted.classes, (std::vector<uint64_t>{1, 0, 2}));
  EXPECT_EQ(counted.confidence[12], 1u);  // 0.6
  EXPECT_EQ(counted.confidence[19], 2u);  // 0.96, and 1 is in the last bin too
  EXPECT_EQ(counted.ink[0], 1u);
  EXPECT_EQ(counted.ink[4], 1u);  // 26 / 255 = 0.102
  EXPECT_EQ(counted.ink[19], 1u);

  Distribution floats{.classes = std::vector<uint64_t>(3)};
  floats.Add(answers, std::span<const float>(std::vector<float>(pixels.begin(), pixels.end())), 3);
  EXPECT_EQ(floats, counted);
  floats.Add(counted);
  EXPECT_EQ(floats.rows, 6u);
  EXPECT_EQ(floats.classes[2], 4u);
  EXPECT_EQ(floats.ink[4], 2u);
}

TEST(DistributionTest, OfAReconstructionOnlyTheInkIsCounted) {
  Distribution counted;
  const std::vector<float> answers = {0.5f, 0.5f, 0.1f, 0.5f, 0.5f, 0.1f};
  const std::vector<uint8_t> pixels = {0, 0, 255, 255};
  counted.Add(answers, std::span(pixels), 2);
  EXPECT_EQ(counted.rows, 2u);
  EXPECT_EQ(Total(counted.confidence), 0u);
  EXPECT_EQ(Total(counted.ink), 2u);
}

TEST(DistributionTest, AnyNumberHasABin) {
  Distribution counted;
  const std::vector<float> pixels = {1e38f, -1e38f, std::numeric_limits<float>::quiet_NaN(),
                                     std::numeric_limits<float>::infinity()};
  counted.Add(std::vector<float>(4), std::span(pixels), 4);
  EXPECT_EQ(counted.ink[0], 2u);
  EXPECT_EQ(counted.ink[Distribution::kBins - 1], 2u);
}

TEST(PopulationStabilityTest, IsZeroForTheSameSharesAndGrowsWithTheDifference) {
  const std::vector<uint64_t> reference = {500, 300, 200};
  EXPECT_NEAR(PopulationStability(reference, std::vector<uint64_t>{5000, 3000, 2000}), 0, 1e-5);
  const double shifted = PopulationStability(reference, std::vector<uint64_t>{300, 300, 400});
  // (0.5 - 0.3) ln(0.5 / 0.3) + (0.2 - 0.4) ln(0.2 / 0.4)
  EXPECT_NEAR(shifted, 0.2 * std::log(5.0 / 3) + 0.2 * std::log(2.0), 2e-3);
  const double reversed = PopulationStability(reference, std::vector<uint64_t>{0, 0, 1000});
  EXPECT_GT(reversed, shifted);
  EXPECT_TRUE(std::isfinite(reversed)) << "empty bins";
  EXPECT_DOUBLE_EQ(PopulationStability(reference, reference), 0);
}

}  // namespace
}  // namespace millrace
