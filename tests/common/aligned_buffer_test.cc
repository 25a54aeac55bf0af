#include "common/aligned_buffer.h"

#include <algorithm>
#include <limits>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(AlignedBufferTest, IsAlignedAndZeroed) {
  for (const size_t count : {1u, 15u, 16u, 1000u, 1'000'000u}) {
    AlignedBuffer<float> buffer(count);
    EXPECT_EQ(buffer.size(), count);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_TRUE(std::ranges::all_of(buffer.span(), [](float x) { return x == 0; }));
  }
}

TEST(AlignedBufferTest, MovesWithoutCopying) {
  AlignedBuffer<float> a(10);
  a[3] = 7;
  const float* data = a.data();
  AlignedBuffer<float> b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b[3], 7);
  EXPECT_TRUE(a.empty());
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
  EXPECT_EQ(a.size(), 10u);
}

TEST(AlignedBufferTest, OfNothing) {
  EXPECT_TRUE(AlignedBuffer<float>().empty());
  EXPECT_TRUE(AlignedBuffer<float>(0).span().empty());
}

TEST(AlignedBufferTest, ASizeThatOverflowsIsBadAlloc) {
  EXPECT_THROW(AlignedBuffer<float>(std::numeric_limits<size_t>::max() / 2), std::bad_alloc);
}

}  // namespace
}  // namespace millrace
