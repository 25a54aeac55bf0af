#include "services/data/request_queue.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::BatchRange Range(uint64_t step, uint64_t steps, uint32_t begin, uint32_t end) {
  v1::BatchRange range;
  range.set_split(v1::SPLIT_TRAIN);
  range.set_step(step);
  range.set_steps(steps);
  range.set_slot_begin(begin);
  range.set_slot_end(end);
  return range;
}

std::vector<std::string> PopAll(RequestQueue& queue) {
  std::vector<std::string> keys;
  while (!queue.empty()) {
    const BatchKey key = queue.Pop();
    keys.push_back(std::to_string(key.step) + "/" + std::to_string(key.slot));
  }
  return keys;
}

TEST(RequestQueueTest, KeepsTheOrderOfAsking) {
  RequestQueue queue;
  EXPECT_TRUE(queue.empty());
  EXPECT_THAT(queue.Add(Range(5, 2, 1, 3)), IsOk());
  EXPECT_THAT(queue.Add(Range(9, 1, 7, 8)), IsOk());
  EXPECT_THAT(queue.Add(Range(0, 1, 0, 2)), IsOk());
  EXPECT_EQ(queue.outstanding(), 7);
  EXPECT_THAT(PopAll(queue), ElementsAre("5/1", "5/2", "6/1", "6/2", "9/7", "0/0", "0/1"));
  EXPECT_THAT(queue.Add(Range(3, 1, 4, 5)), IsOk());
  EXPECT_THAT(PopAll(queue), ElementsAre("3/4"));
}

TEST(RequestQueueTest, RefusesMoreThanTheLimit) {
  RequestQueue queue;
  EXPECT_THAT(queue.Add(Range(0, 128, 0, 8)), IsOk());
  EXPECT_THAT(queue.Add(Range(0, 1, 0, 1)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("over the limit of 1024")));
  queue.Pop();
  EXPECT_THAT(queue.Add(Range(0, 1, 0, 1)), IsOk());
  EXPECT_EQ(queue.outstanding(), 1024);
}

TEST(RequestQueueTest, CountsWithoutOverflow) {
  RequestQueue queue;
  EXPECT_THAT(queue.Add(Range(0, uint64_t{1} << 62, 0, 1024)), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace millrace
