#include "common/tensor/mxint8.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsNan;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int> Encoded(const std::vector<float>& values) {
  std::vector<std::byte> bytes(Mxint8Bytes(values.size()));
  EncodeMxint8(values, bytes);
  std::vector<int> numbers;
  for (const std::byte byte : bytes) numbers.push_back(std::to_integer<int>(byte));
  return numbers;
}

std::vector<float> Decoded(std::vector<uint8_t> bytes) {
  const auto data = std::as_bytes(std::span(bytes));
  std::vector<float> values(Mxint8Count(bytes.size()).value());
  DecodeMxint8(ByteRope({&data, 1}, 0, data.size()), values);
  return values;
}

std::vector<float> Rounded(std::vector<float> values) {
  RoundToMxint8(values);
  return values;
}

TEST(Mxint8Test, ABlockHasTheExponentOfItsLargestNumber) {
  // 5 = 1.25 * 2^2, so the unit is 2^(2 - 6).
  EXPECT_THAT(Encoded({5, -2.5, 0.0625, 0, 1}), ElementsAre(127 + 2, 80, 256 - 40, 1, 0, 16));
  EXPECT_THAT(Decoded({127 + 2, 80, 256 - 40, 1, 0, 16}), ElementsAre(5, -2.5, 0.0625, 0, 1));
}

TEST(Mxint8Test, DecodesWhateverComes) {
  EXPECT_THAT(Decoded({3, 127}), ElementsAre(0));
  EXPECT_THAT(Decoded({127, 128}), ElementsAre(-2));
  EXPECT_THAT(Decoded({254, 128}), ElementsAre(-kInfinity));
  EXPECT_THAT(Decoded({255, 1}), ElementsAre(IsNan()));
}

TEST(Mxint8Test, RoundsToNearestTiesToEvenAndNeverToALargerExponent) {
  const float unit = std::ldexp(1.0f, -6);
  EXPECT_THAT(Rounded({1, 0.4f * unit, 0.6f * unit, 0.5f * unit, 1.5f * unit, -2.5f * unit, 1.999f}),
              ElementsAre(1, 0, unit, 0, 2 * unit, -2 * unit, 127 * unit));
}

TEST(Mxint8Test, BlocksDoNotKnowOfEachOther) {
  std::vector<float> values(2 * kMxint8Block, 1.0f);
  values[0] = 1e6f;
  const std::vector<float> rounded = Rounded(values);
  EXPECT_EQ(rounded[kMxint8Block - 1], 0);
  EXPECT_EQ(rounded[kMxint8Block], 1);
}

TEST(Mxint8Test, WhatIsNotFiniteSpoilsItsBlockOnly) {
  for (const float bad : {std::nanf(""), -std::nanf(""), kInfinity, -kInfinity}) {
    std::vector<float> values(kMxint8Block + 2, 1.0f);
    values[3] = bad;
    const std::vector<float> rounded = Rounded(values);
    EXPECT_THAT(std::vector<float>(rounded.begin(), rounded.begin() + kMxint8Block), Each(IsNan()));
    EXPECT_THAT(std::vector<float>(rounded.begin() + kMxint8Block, rounded.end()), Each(1.0f));
  }
}

TEST(Mxint8Test, TheLargestAndTheSmallestBlocks) {
  const float largest = std::numeric_limits<float>::max(), smallest = std::ldexp(1.0f, -120);
  EXPECT_THAT(Rounded({largest, -largest}), ElementsAre(std::ldexp(127.0f, 121), std::ldexp(-127.0f, 121)));
  EXPECT_THAT(Rounded({smallest, smallest / 64, smallest / 256}), ElementsAre(smallest, smallest / 64, 0));
  EXPECT_THAT(Encoded({smallest / 2, -1e-45f}), ElementsAre(0, 0, 0));
}

// The error of a number is at most half a unit, or one where it would have taken a larger exponent.
RC_GTEST_PROP(Mxint8Test, TheErrorIsBoundedByTheLargestNumber, (std::vector<int32_t> numbers)) {
  std::vector<float> values(numbers.begin(), numbers.end());
  const std::vector<float> rounded = Rounded(values);
  for (size_t i = 0; i < values.size(); ++i) {
    float largest = 0;
    const size_t begin = i / kMxint8Block * kMxint8Block, end = std::min(begin + kMxint8Block, values.size());
    for (size_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(values[k]));
    const float unit = std::ldexp(1.0f, std::ilogb(std::max(largest, 1.0f)) - 6);
    const bool saturated = std::abs(values[i]) > 127 * unit;
    RC_ASSERT(std::abs(rounded[i] - values[i]) <= (saturated ? unit : unit / 2));
  }
}

}  // namespace
}  // namespace millrace
