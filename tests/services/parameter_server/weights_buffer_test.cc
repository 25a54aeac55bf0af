#include "services/parameter_server/weights_buffer.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr size_t kElements = 1000;

// Adds 1 to every weight and publishes: version v then holds v everywhere.
void Advance(WeightsPool& pool) {
  const uint64_t next = pool.current().version + 1;
  for (float& value : pool.BeginNext()) value += 1;
  pool.Publish(next);
}

bool IsIntact(const WeightsVersion& weights) {
  for (float value : weights.values) {
    if (value != static_cast<float>(weights.version)) return false;
  }
  return true;
}

TEST(WeightsPoolTest, WritesInPlaceWhenNobodyHoldsTheVersion) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  const float* data = pool.current().values.data();
  for (int i = 0; i < 5; ++i) Advance(pool);
  EXPECT_EQ(pool.current().values.data(), data);
  EXPECT_TRUE(IsIntact(pool.current()));
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

TEST(WeightsPoolTest, APreparedCopyIsTheNextVersionsBuffer) {
  WeightsPool pool(0, std::vector<float>(kElements, 0));
  std::vector<WeightsVersion> held;
  for (int i = 0; i < 5; ++i) {
    pool.PrepareNext();
    if (i % 2 == 0) pool.PrepareNext();
    held.push_back(pool.current());
    Advance(pool);
  }
  for (const WeightsVersion& weights : held) EXPECT_TRUE(IsIntact(weights)) << weights.version;
  EXPECT_TRUE(IsIntact(pool.current()));
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
