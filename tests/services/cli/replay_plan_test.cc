#include "services/cli/replay_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// A checkpoint of a job with two slots, whose step s comes to 10 s and 10 s + 1.
CheckpointRecord Record(uint64_t version, uint64_t first_step) {
  CheckpointRecord record{.version = version, .plan = {}, .fingerprint = {}, .checksums = SlotChecksums()};
  record.plan.mutable_spec()->set_slots(2);
  record.plan.mutable_spec()->set_epochs(7);
  record.plan.mutable_spec()->set_checkpoint_steps(5);
  record.plan.mutable_dataset()->set_fingerprint("f");
  record.fingerprint.torch_version = "1.13.1";
  record.checksums->first_step = first_step;
  record.checksums->slots = 2;
  for (uint64_t step = first_step; step < version; ++step) {
    record.checksums->values.insert(record.checksums->values.end(), {10 * step, 10 * step + 1});
  }
  return record;
}

TEST(ReplayPlanTest, BeginsAtTheNewestCheckpointUpToTheStep) {
  const std::vector<CheckpointRecord> records = {Record(5, 0), Record(10, 5), Record(15, 10)};
  const auto plan = MakeReplayPlan(records, 11, 1);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->start_version, 10u);
  EXPECT_THAT(plan->recorded, ElementsAre(Pair(10, ElementsAre(100, 101)), Pair(11, ElementsAre(110, 111))));
  EXPECT_EQ(plan->spec.epochs(), 7u);
  EXPECT_EQ(plan->spec.checkpoint_steps(), 12u) << "a checkpoint is due right after the step";
  EXPECT_EQ(plan->recorded_under.torch_version, "1.13.1");
  EXPECT_EQ(plan->dataset.fingerprint(), "f");
  const auto next = MakeReplayPlan(records, 10, 0);
  ASSERT_THAT(next, IsOk());
  EXPECT_EQ(next->start_version, 10u) << "the checkpoint of version 10 is what step 10 reads";
}

TEST(ReplayPlanTest, BeforeTheFirstCheckpointItBeginsWithTheJob) {
  const std::vector<CheckpointRecord> records = {Record(5, 0), Record(10, 5)};
  const auto plan = MakeReplayPlan(records, 2, 0);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->start_version, 0u);
  EXPECT_EQ(plan->recorded.size(), 3u);
}

TEST(ReplayPlanTest, StalenessKeepsTheJobsOwnCheckpoints) {
  std::vector<CheckpointRecord> records = {Record(5, 0), Record(10, 5)};
  records[1].plan.mutable_spec()->mutable_asynchrony()->set_staleness(2);
  const auto plan = MakeReplayPlan(records, 6, 0);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->spec.checkpoint_steps(), 5u);
}

TEST(ReplayPlanTest, RefusesWhatTheJobHasNoRecordOf) {
  const std::vector<CheckpointRecord> pruned = {Record(20, 15), Record(25, 20)};
  EXPECT_THAT(MakeReplayPlan({}, 3, 0), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no checkpoint")));
  EXPECT_THAT(MakeReplayPlan(pruned, 25, 0),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("last recorded step is 24")));
  EXPECT_THAT(MakeReplayPlan(pruned, 16, 0),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("oldest checkpoint that is kept, of version 20")));
  EXPECT_THAT(MakeReplayPlan(pruned, 3, 0), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("oldest checkpoint")));
  EXPECT_THAT(MakeReplayPlan(pruned, 21, 2), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("2 slots, 0 to 1")));
  // The best checkpoint was spared, and those after it were not.
  const std::vector<CheckpointRecord> gap = {Record(5, 0), Record(20, 15)};
  EXPECT_THAT(MakeReplayPlan(gap, 7, 0), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("steps 15 to 19")));
  const auto beyond = MakeReplayPlan(gap, 16, 0);
  ASSERT_THAT(beyond, IsOk());
  EXPECT_EQ(beyond->start_version, 5u);
  EXPECT_EQ(beyond->recorded.begin()->first, 15u);
}

TEST(ReplayPlanTest, RefusesAJobWithoutUsableRecords) {
  std::vector<CheckpointRecord> records = {Record(5, 0), Record(10, 5)};
  records[1].checksums = absl::DataLossError("damaged");
  EXPECT_THAT(MakeReplayPlan(records, 7, 0), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("damaged")));
  EXPECT_THAT(MakeReplayPlan(records, 3, 0), IsOk());
  records[1].plan.mutable_spec()->mutable_asynchrony()->set_unbounded(true);
  EXPECT_THAT(MakeReplayPlan(records, 7, 0), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("unbounded")));
}

}  // namespace
}  // namespace millrace
