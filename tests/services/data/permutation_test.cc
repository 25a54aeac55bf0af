#include "services/data/permutation.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

std::vector<uint64_t> First(const Permutation& permutation, uint64_t count) {
  std::vector<uint64_t> values;
  for (uint64_t i = 0; i < count; ++i) values.push_back(permutation(i));
  return values;
}

// These values come from a second implementation, written in Python from the comment in the header. They must never
// change: checkpoints of running jobs depend on them.
TEST(PermutationTest, HasTheSpecifiedValues) {
  EXPECT_THAT(First(Permutation(10, 1, PermutationPurpose::kShuffle, 0), 10),
              ElementsAre(0, 8, 1, 5, 7, 2, 3, 9, 4, 6));
  EXPECT_THAT(First(Permutation(54000, 42, PermutationPurpose::kShuffle, 3), 8),
              ElementsAre(24089, 18726, 49688, 27916, 261, 13961, 26657, 1774));
  EXPECT_THAT(First(Permutation(60000, 42, PermutationPurpose::kSplit, 0), 8),
              ElementsAre(6499, 49857, 46232, 658, 58317, 30629, 57833, 32338));
  const Permutation large(1'000'000'000'000, 0xfedcba9876543210, PermutationPurpose::kShuffle, uint64_t{1} << 40);
  EXPECT_EQ(large(0), 815469608921);
  EXPECT_EQ(large(1), 677397757427);
  EXPECT_EQ(large(999'999'999'999), 100576713158);
}

RC_GTEST_PROP(PermutationTest, IsABijection, ()) {
  const auto size = *rc::gen::inRange<uint64_t>(1, 5000);
  const auto purpose = *rc::gen::element(PermutationPurpose::kSplit, PermutationPurpose::kShuffle);
  const Permutation permutation(size, *rc::gen::arbitrary<uint64_t>(), purpose, *rc::gen::arbitrary<uint64_t>());
  std::vector<bool> seen(size);
  for (uint64_t i = 0; i < size; ++i) {
    const uint64_t value = permutation(i);
    RC_ASSERT(value < size);
    RC_ASSERT(!seen[value]);
    seen[value] = true;
  }
}

TEST(PermutationTest, SeedPurposeAndIndexEachGiveAnother) {
  const auto base = First(Permutation(1000, 1, PermutationPurpose::kShuffle, 1), 1000);
  EXPECT_NE(base, First(Permutation(1000, 2, PermutationPurpose::kShuffle, 1), 1000));
  EXPECT_NE(base, First(Permutation(1000, uint64_t{1} << 32 | 1, PermutationPurpose::kShuffle, 1), 1000));
  EXPECT_NE(base, First(Permutation(1000, 1, PermutationPurpose::kSplit, 1), 1000));
  EXPECT_NE(base, First(Permutation(1000, 1, PermutationPurpose::kShuffle, 2), 1000));
  EXPECT_NE(base, First(Permutation(1000, 1, PermutationPurpose::kShuffle, uint64_t{1} << 32 | 1), 1000));
}

// Over many epochs each sample should come to each place equally often: chi-squared with 81 degrees of freedom, of
// which 0.1 % is over 126.1. The seed is fixed, so this passes or fails once and for all.
TEST(PermutationTest, PutsEachElementEverywhereEquallyOften) {
  constexpr uint64_t kSize = 10;
  constexpr uint64_t kEpochs = 20000;
  uint64_t counts[kSize][kSize] = {};
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation permutation(kSize, 7, PermutationPurpose::kShuffle, epoch);
    for (uint64_t i = 0; i < kSize; ++i) ++counts[i][permutation(i)];
  }
  constexpr double kExpected = static_cast<double>(kEpochs) / kSize;
  double chi_squared = 0;
  for (const auto& row : counts) {
    for (const uint64_t count : row) {
      const double difference = static_cast<double>(count) - kExpected;
      chi_squared += difference * difference / kExpected;
    }
  }
  EXPECT_LT(chi_squared, 126.1);
}

}  // namespace
}  // namespace millrace
