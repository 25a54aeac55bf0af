#include "common/tensor/number_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

constexpr std::array kNarrow = {v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_FLOAT16, v1::NUMBER_FORMAT_MXINT8};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> Rounded(v1::NumberFormat format, std::vector<float> values) {
  Round(format, values);
  return values;
}

// Over the wire and back, in two pieces that are cut at `cut` bytes.
std::vector<float> Sent(v1::NumberFormat format, const std::vector<float>& values, size_t cut) {
  std::vector<std::byte> bytes(EncodedBytes(format, values.size()));
  Encode(format, values, bytes);
  cut = std::min(cut, bytes.size());
  const std::array<ByteRope::Piece, 2> pieces = {ByteRope::Piece(bytes).first(cut),
                                                 ByteRope::Piece(bytes).subspan(cut)};
  std::vector<float> out(values.size());
  Decode(format, ByteRope(pieces, 0, bytes.size()), out);
  return out;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

TEST(NumberFormatTest, Bfloat16HasEightBitsAndTiesGoToTheEvenOne) {
  EXPECT_EQ(EncodedBytes(v1::NUMBER_FORMAT_BFLOAT16, 3), 6u);
  // Neighbours in [1, 2) are 2^-7 apart.
  const float gap = std::ldexp(1.0f, -7);
  EXPECT_THAT(Rounded(v1::NUMBER_FORMAT_BFLOAT16, {1 + 0.4f * gap, 1 + 0.6f * gap, 1 + 0.5f * gap, 1 + 1.5f * gap,
                                                   -1 - 1.5f * gap, 3e38f, kInfinity}),
              ElementsAre(1, 1 + gap, 1, 1 + 2 * gap, -1 - 2 * gap, std::bit_cast<float>(0x7f620000), kInfinity));
}

TEST(NumberFormatTest, Float16HasElevenBitsSubnormalsAndALargestNumber) {
  EXPECT_EQ(EncodedBytes(v1::NUMBER_FORMAT_FLOAT16, 3), 6u);
  const float gap = std::ldexp(1.0f, -10), smallest = std::ldexp(1.0f, -24);
  EXPECT_THAT(Rounded(v1::NUMBER_FORMAT_FLOAT16, {1 + 0.4f * gap, 1 + 1.5f * gap, 0.4f * smallest, 0.6f * smallest,
                                                  65519, 65520, 1e9f, -1e9f, kInfinity}),
              ElementsAre(1, 1 + 2 * gap, 0, smallest, 65504, 65504, 65504, -65504, 65504));
}

TEST(NumberFormatTest, Float32IsLeftAsItIs) {
  const std::vector<float> values = {1.0f / 3, -0.0f, 1e-45f, kInfinity};
  constexpr auto kUnknown = static_cast<v1::NumberFormat>(999);  // as a newer peer may ask for
  for (const v1::NumberFormat format : {v1::NUMBER_FORMAT_UNSPECIFIED, v1::NUMBER_FORMAT_FLOAT32, kUnknown}) {
    EXPECT_EQ(EncodedBytes(format, 3), 12u);
    EXPECT_EQ(Bits(Rounded(format, values)), Bits(values));
    EXPECT_EQ(Bits(Sent(format, values, 5)), Bits(values));
  }
}

TEST(NumberFormatTest, NotANumberStaysOne) {
  for (const v1::NumberFormat format : kNarrow) {
    EXPECT_TRUE(std::isnan(Rounded(format, {std::nanf("")})[0]));
    EXPECT_TRUE(std::isnan(Sent(format, {std::nanf("")}, 1)[0]));
  }
}

// What is rounded once is sent as it is: that is what makes a sum independent of where it is made.
RC_GTEST_PROP(NumberFormatTest, WhatIsRoundedIsSentUnchanged, (std::vector<uint32_t> bits, uint16_t cut)) {
  std::vector<float> values;
  for (const uint32_t word : bits) {
    if (const float value = std::bit_cast<float>(word); !std::isnan(value)) values.push_back(value);
  }
  for (const v1::NumberFormat format : kNarrow) {
    const std::vector<float> rounded = Rounded(format, values);
    RC_ASSERT(Bits(Rounded(format, rounded)) == Bits(rounded));
    RC_ASSERT(Bits(Sent(format, rounded, cut)) == Bits(rounded));
    RC_ASSERT(Bits(Sent(format, values, cut)) == Bits(rounded));
  }
}

// What is cut where numbers do not depend on each other travels and is rounded as the whole is.
RC_GTEST_PROP(NumberFormatTest, PartsAreRoundedAsTheWhole, (std::vector<int16_t> numbers, uint8_t where)) {
  std::vector<float> values(numbers.begin(), numbers.end());
  const size_t cut = std::min(where % 8 * kNumbersTogether, values.size() / kNumbersTogether * kNumbersTogether);
  for (const v1::NumberFormat format : kNarrow) {
    std::vector<std::byte> whole(EncodedBytes(format, values.size())), parts(whole.size());
    Encode(format, values, whole);
    const std::span<const float> all = values;
    const auto [first, second] = std::pair(std::span(parts).first(EncodedBytes(format, cut)),
                                           std::span(parts).subspan(EncodedBytes(format, cut)));
    Encode(format, all.first(cut), first);
    Encode(format, all.subspan(cut), second);
    RC_ASSERT(parts == whole);
    std::vector<float> rounded = values;
    Round(format, std::span(rounded).first(cut));
    Round(format, std::span(rounded).subspan(cut));
    RC_ASSERT(Bits(rounded) == Bits(Rounded(format, values)));
  }
}

TEST(NumberFormatTest, BytesSayHowManyNumbersTheyAre) {
  for (const v1::NumberFormat format : kNarrow) {
    std::vector<bool> possible(200);
    for (size_t count = 0; count < 100; ++count) {
      ASSERT_EQ(EncodedCount(format, EncodedBytes(format, count)), count);
      if (EncodedBytes(format, count) < possible.size()) possible[EncodedBytes(format, count)] = true;
    }
    for (size_t bytes = 0; bytes < 100; ++bytes) {
      EXPECT_EQ(EncodedCount(format, bytes).has_value(), possible[bytes]) << bytes;
    }
  }
}

}  // namespace
}  // namespace millrace
