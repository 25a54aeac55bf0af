#include "services/parameter_server/gradient_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "common/tensor/flat_layout.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/small_plan.h"

namespace millrace {
namespace {

constexpr uint64_t kElements = 64 * 1000 + 17;  // the vector's end lies in a block

SquaredNorm NormOf(std::span<const float> values) {
  SquaredNorm norm;
  norm.AddSquaresOf(values);
  return norm;
}

TEST(GradientNormTest, IsTheEuclideanNorm) {
  EXPECT_EQ(NormOf({}).norm(), 0);
  EXPECT_EQ(NormOf(std::vector<float>{3, -4}).norm(), 5);
  EXPECT_EQ(NormOf(std::vector<float>(64 * 100, 0.5f)).norm(), 40);
  const std::vector<float> gradient = SlotGradient(1, 2, kElements);
  double sum = 0;
  for (const float value : gradient) sum += static_cast<double>(value) * value;
  EXPECT_NEAR(NormOf(gradient).norm() / std::sqrt(sum), 1, 1e-12);
}

TEST(GradientNormTest, AnyNumberOfShardsAndChunksGivesTheSameBits) {
  for (uint64_t step = 0; step < 20; ++step) {
    const std::vector<float> gradient = SlotGradient(step, 1, kElements);
    const SquaredNorm whole = NormOf(gradient);
    for (const uint32_t shards : {2u, 3u, 7u, 64u}) {
      SquaredNorm total;
      const auto ranges = *ShardRanges(kElements, shards);
      for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
        const std::span<const float> part = std::span(gradient).subspan(range->begin, range->size());
        const size_t cut = part.size() / 2 / kShardAlignment * kShardAlignment;
        SquaredNorm norm = NormOf(part.subspan(cut));
        norm.Add(NormOf(part.first(cut)));
        total.Add(norm);
      }
      EXPECT_EQ(total, whole) << shards << " shards, step " << step;
    }
  }
}

TEST(GradientNormTest, AValueThatIsNoNumberIsSeenWhereverItIs) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> gradient(1000, 1.0f);
    gradient[777] = bad;
    SquaredNorm total = NormOf(std::span<const float>(gradient).subspan(960));
    EXPECT_TRUE(total.finite);
    total.Add(NormOf(std::span<const float>(gradient).first(960)));
    EXPECT_FALSE(total.finite);
    EXPECT_EQ(total.norm(), std::numeric_limits<double>::infinity());
  }
}

TEST(ClipScaleTest, OnlyScalesDown) {
  EXPECT_EQ(ClipScale(1, 0), 1);
  EXPECT_EQ(ClipScale(1, 0.5), 1);
  EXPECT_NEAR(ClipScale(1, 4), 0.25, 1e-6);
  EXPECT_NEAR(ClipScale(5, 10), 0.5, 1e-6);
  EXPECT_EQ(ClipScale(1, std::numeric_limits<double>::infinity()), 1);
}

}  // namespace
}  // namespace millrace
