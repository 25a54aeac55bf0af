#include "services/parameter_server/weights_buffer.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr size_t kElements = 1000;

// Publishes the next version: version v holds v everywhere.
void Advance(WeightsPool& pool) {
  const WeightsDraft next = pool.Begin(pool.current().version + 1);
  std::fill(next.values.begin(), next.values.end(), static_cast<float>(next.weights.version));
  pool.Publish(next);
}

bool IsIntact(const WeightsVersion& weights) {
  for (float value : weights.values) {
    if (value != static_cast<float>(weights.version)) return false;
  }
  return true;
}

TEST(WeightsPoolTest, TheCurrentVersionStaysUntilTheNextIsPublished) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  const WeightsDraft next = pool.Begin(1);
  std::fill(next.values.begin(), next.values.end(), 1.0f);
  EXPECT_EQ(pool.current().version, 0u);
  EXPECT_TRUE(IsIntact(pool.current()));
  EXPECT_TRUE(IsIntact(next.weights));
  pool.Publish(next);
  EXPECT_EQ(pool.current().version, 1u);
  EXPECT_EQ(pool.current().values.data(), next.values.data());
}

TEST(WeightsPoolTest, PartsTravelInTheWiresFormat) {
  std::vector<float> values(kElements);
  for (size_t i = 0; i < kElements; ++i) values[i] = 1.0f / static_cast<float>(1 + i);
  constexpr size_t kCut = 3 * kNumbersTogether;
  for (const v1::NumberFormat wire :
       {v1::NUMBER_FORMAT_FLOAT32, v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_MXINT8}) {
    WeightsPool pool(0, std::vector<float>(kElements, 0), wire);
    const WeightsDraft next = pool.Begin(1);
    std::copy(values.begin(), values.end(), next.values.begin());
    next.Finish(0, kCut);
    next.Finish(kCut, kElements);
    std::vector<std::byte> expected(EncodedBytes(wire, kElements)), travelling;
    Encode(wire, values, expected);
    for (const auto& [begin, end] : {std::pair{size_t{0}, kCut}, std::pair{kCut, kElements}}) {
      const std::span<const std::byte> part = next.weights.Travelling(begin, end).bytes;
      travelling.insert(travelling.end(), part.begin(), part.end());
    }
    EXPECT_EQ(travelling, expected) << v1::NumberFormat_Name(wire);
  }
}

TEST(WeightsPoolTest, WhatIsHeldStaysAsItIs) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  std::vector<WeightsVersion> held;
  for (int i = 0; i < 5; ++i) {
    held.push_back(pool.current());
    Advance(pool);
  }
  for (const WeightsVersion& weights : held) EXPECT_TRUE(IsIntact(weights)) << weights.version;
  EXPECT_TRUE(IsIntact(pool.current()));
}

TEST(WeightsPoolTest, BuffersAreReused) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  WeightsVersion held = pool.current();
  const float* first = held.values.data();
  Advance(pool);
  const float* second = pool.current().values.data();
  EXPECT_NE(second, first);
  held = pool.current();  // lets go of the first
  Advance(pool);
  EXPECT_EQ(pool.current().values.data(), first);
}

TEST(WeightsPoolTest, AVersionOutlivesThePool) {
  WeightsVersion held;
  {
    WeightsPool pool(3, std::vector<float>(kElements, 3));
    held = pool.current();
  }
  EXPECT_TRUE(IsIntact(held));
}

// For the thread sanitizer: readers let go on their own threads while the writer goes on.
TEST(WeightsPoolTest, ReadersOnOtherThreads) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  for (int round = 0; round < 50; ++round) {
    std::vector<std::thread> readers;
    for (int i = 0; i < 3; ++i) {
      readers.emplace_back([weights = pool.current()]() mutable {
        EXPECT_TRUE(IsIntact(weights));
        weights = {};
      });
    }
    for (int i = 0; i < 3; ++i) Advance(pool);
    for (std::thread& reader : readers) reader.join();
  }
  EXPECT_TRUE(IsIntact(pool.current()));
}

}  // namespace
}  // namespace millrace
