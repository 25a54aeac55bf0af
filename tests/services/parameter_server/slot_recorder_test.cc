#include "services/parameter_server/slot_recorder.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class SlotRecorderTest : public testing::Test {
 protected:
  // Two slots.
  void Add(uint64_t value) { recorder_.Add(std::vector<uint64_t>{value, value + 1}); }

  SlotRecorder recorder_;
};

TEST_F(SlotRecorderTest, ACheckpointGetsWhatCameSinceTheOneBefore) {
  recorder_.Begin(7);
  Add(70);
  Add(80);
  Add(90);
  const SlotChecksums checksums = recorder_.Before(9);
  EXPECT_EQ(checksums.first_step, 7u);
  EXPECT_EQ(checksums.slots, 2u);
  EXPECT_THAT(checksums.values, ElementsAre(70, 71, 80, 81)) << "a step beyond it may be complete already";
  recorder_.Committed(9);
  Add(100);
  EXPECT_EQ(recorder_.Before(11), (SlotChecksums{.first_step = 9, .slots = 2, .values = {90, 91, 100, 101}}));
}

TEST_F(SlotRecorderTest, WhatACheckpointThatFailedWouldHaveHeldGoesToTheNext) {
  recorder_.Begin(0);
  Add(0);
  EXPECT_THAT(recorder_.Before(1).values, ElementsAre(0, 1));
  Add(10);
  EXPECT_THAT(recorder_.Before(2).values, ElementsAre(0, 1, 10, 11));
}

TEST_F(SlotRecorderTest, AfterARecoveryNothingIsLeftOfWhatIsMadeAgain) {
  recorder_.Begin(0);
  for (const uint64_t value : {0, 10, 20}) Add(value);
  recorder_.Begin(1);
  EXPECT_THAT(recorder_.Before(3).values, IsEmpty());
  Add(10);
  EXPECT_EQ(recorder_.Before(2), (SlotChecksums{.first_step = 1, .slots = 2, .values = {10, 11}}));
}

TEST_F(SlotRecorderTest, BeyondTheLimitTheOldestStepsAreForgotten) {
  recorder_.Begin(3);
  const std::vector<uint64_t> step(1024, 5);
  for (size_t i = 0; i < kSlotChecksumsMax / step.size() + 2; ++i) recorder_.Add(step);
  const SlotChecksums checksums = recorder_.Before(1 << 20);
  EXPECT_EQ(checksums.first_step, 5u);
  EXPECT_EQ(checksums.values.size(), kSlotChecksumsMax);
}

}  // namespace
}  // namespace millrace
