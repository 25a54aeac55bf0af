#include "common/random.h"

#include <set>

#include "gtest/gtest.h"

namespace millrace {
namespace {

using Words = std::array<uint32_t, 4>;

// Random123's known answers for philox4x32-10 (kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxStreamTest, IsTheFunctionOfBlockStreamAndSeed) {
  constexpr uint64_t kSeed = 0x0123456789abcdef, kStream = 0xfedcba9876543210;
  PhiloxStream stream(kSeed, kStream);
  for (uint32_t block = 0; block < 3; ++block) {
    const Words words = Philox4x32({block, 0, 0x76543210, 0xfedcba98}, {0x89abcdef, 0x01234567});
    for (const uint32_t word : words) EXPECT_EQ(stream.NextUint32(), word);
  }
}

TEST(PhiloxStreamTest, UniformIsInTheUnitIntervalAndCentred) {
  PhiloxStream stream(5, 0);
  double sum = 0;
  constexpr int kCount = 100'000;
  for (int i = 0; i < kCount; ++i) {
    const float value = stream.NextUniform();
    ASSERT_GE(value, 0.0f);
    ASSERT_LT(value, 1.0f);
    sum += value;
  }
  EXPECT_NEAR(sum / kCount, 0.5, 0.005);  // five standard deviations
}

TEST(PhiloxStreamTest, SeedsAndStreamsDiffer) {
  std::set<uint32_t> first;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (uint64_t stream = 0; stream < 10; ++stream) first.insert(PhiloxStream(seed, stream).NextUint32());
  }
  EXPECT_EQ(first.size(), 100u);
}

TEST(RandomSeedTest, IsNeitherZeroNorTheSameTwice) {
  const uint64_t a = RandomSeed(), b = RandomSeed();
  EXPECT_NE(a, 0u);
  EXPECT_NE(a, b);
}

}  // namespace
}  // namespace millrace
