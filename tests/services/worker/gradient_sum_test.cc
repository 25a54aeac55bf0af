#include "services/worker/gradient_sum.h"

#include <thread>
#include <vector>

#include "common/hashing.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"

namespace millrace {
namespace {

// Values whose sum depends on the order of addition.
std::vector<float> GradientOf(uint32_t slot, size_t size) {
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i)
    values[i] = 1.0f / static_cast<float>(1 + slot * 7 + i * 3) * (slot % 3 == 0 ? 1e6f : 1);
  return values;
}

// The tree by its definition: a node of width 2w is its left child plus its right child, if there is one.
// Every node is rounded to the wire's number format.
std::vector<float> TreeSum(uint32_t begin, uint32_t width, uint32_t slots, size_t size, v1::NumberFormat wire = {}) {
  std::vector<float> sum = width == 1 ? GradientOf(begin, size) : TreeSum(begin, width / 2, slots, size, wire);
  if (width > 1 && begin + width / 2 < slots) {
    const std::vector<float> right = TreeSum(begin + width / 2, width / 2, slots, size, wire);
    for (size_t i = 0; i < size; ++i) sum[i] += right[i];
  }
  Round(wire, sum);
  return sum;
}

std::vector<float> SumOf(GradientSum& sum, SlotNode node, uint32_t slots, size_t size) {
  sum.Begin(slots);
  for (uint32_t slot = node.begin; slot < node.end; ++slot) {
    const std::vector<float> values = GradientOf(slot, size);
    // Cut in two, as a network's parameters cut it.
    const std::span<const float> all(values);
    const std::span<const float> pieces[] = {all.first(size / 3), all.subspan(size / 3)};
    EXPECT_EQ(sum.Add(slot, pieces), Checksum64(std::as_bytes(all)));
  }
  const auto total = sum.Finish();
  return {total->span().begin(), total->span().end()};
}

RC_GTEST_PROP(GradientSumTest, AddsInTheFixedTree, ()) {
  const auto slots = *rc::gen::inRange<uint32_t>(1, 40);
  const auto width = uint32_t{1} << *rc::gen::inRange(0, 7);
  const auto begin = *rc::gen::inRange<uint32_t>(0, slots) / width * width;
  const SlotNode node{begin, std::min(begin + width, slots)};
  const auto wire = *rc::gen::element(v1::NUMBER_FORMAT_FLOAT32, v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_FLOAT16,
                                      v1::NUMBER_FORMAT_MXINT8);
  constexpr size_t kSize = 50;
  GradientSum sum(kSize, wire);
  RC_ASSERT(SumOf(sum, node, slots, kSize) == TreeSum(begin, width, slots, kSize, wire));
}

TEST(GradientSumTest, LargeGradientsGoBlockByBlock) {
  constexpr size_t kSize = 100003;
  for (const v1::NumberFormat wire :
       {v1::NUMBER_FORMAT_FLOAT32, v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_MXINT8}) {
    GradientSum sum(kSize, wire);
    EXPECT_EQ(SumOf(sum, {0, 5}, 5, kSize), TreeSum(0, 8, 5, kSize, wire));
  }
}

TEST(GradientSumTest, ASumThatIsStillHeldIsNotWrittenTo) {
  GradientSum sum(3);
  const std::vector<float> one{1, 1, 1}, two{2, 2, 2};
  const std::span<const float> first[] = {one}, second[] = {two};
  sum.Begin(1);
  sum.Add(0, first);
  const auto held = sum.Finish();
  sum.Begin(1);
  sum.Add(0, second);
  const auto next = sum.Finish();
  EXPECT_NE(held->data(), next->data());
  EXPECT_EQ((*held)[0], 1);
}

TEST(GradientSumTest, MemoryIsReusedAndMayOutliveTheSum) {
  auto sum = std::make_unique<GradientSum>(3);
  const std::vector<float> one{1, 1, 1};
  const std::span<const float> pieces[] = {one};
  sum->Begin(1);
  sum->Add(0, pieces);
  auto held = sum->Finish();
  const float* memory = held->data();
  std::thread([&] { held.reset(); }).join();  // as gRPC's threads do
  sum->Begin(1);
  sum->Add(0, pieces);
  held = sum->Finish();
  EXPECT_EQ(held->data(), memory);
  sum.reset();
  EXPECT_EQ((*held)[2], 1);
}

}  // namespace
}  // namespace millrace
