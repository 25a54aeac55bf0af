#include "services/parameter_server/visit_audit.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

uint64_t VisitsOf(uint64_t step) { return 0xf000000000000001u * (step + 1); }

class VisitAuditTest : public testing::Test {
 protected:
  // 3 steps an epoch, of 16, 16 and 8 samples.
  void Begin(TestPlan plan, const std::optional<v1::VisitCheck>& epoch_so_far = std::nullopt) {
    plan_ = plan.Build();
    audit_.BeginRun(plan_, epoch_so_far);
  }
  std::vector<v1::VisitCheck> Complete(uint64_t step) {
    return audit_.StepCompleted(plan_, step, {.samples = StepSamples(plan_, step), .visits = VisitsOf(step)});
  }
  static void ExpectCheck(const v1::VisitCheck& check, uint64_t epoch, uint64_t begin, uint64_t end, uint64_t samples) {
    uint64_t visits = 0;
    for (uint64_t step = begin; step < end; ++step) visits += VisitsOf(step);
    EXPECT_EQ(check.epoch(), epoch);
    EXPECT_EQ(check.begin(), begin);
    EXPECT_EQ(check.end(), end);
    EXPECT_EQ(check.samples(), samples);
    EXPECT_EQ(check.visits(), visits);
    EXPECT_EQ(check.expected_samples(), 0u);
  }
  static v1::VisitCheck Expecting(v1::VisitCheck check, uint64_t samples, uint64_t visits) {
    check.set_expected_samples(samples);
    check.set_expected_visits(visits);
    return check;
  }

  v1::JobPlan plan_;
  VisitAudit audit_;
};

TEST_F(VisitAuditTest, ChecksEachEpochAtItsEnd) {
  Begin({});
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    EXPECT_THAT(Complete(3 * epoch), IsEmpty());
    EXPECT_THAT(Complete(3 * epoch + 1), IsEmpty());
    const auto due = Complete(3 * epoch + 2);
    ASSERT_THAT(due, SizeIs(1));
    ExpectCheck(due[0], epoch, 3 * epoch, 3 * epoch + 3, 40);
    EXPECT_FALSE(audit_.EpochSoFar(3 * epoch + 3).has_value());
  }
}

TEST_F(VisitAuditTest, ChecksThePartsBetweenCheckpointsToo) {
  Begin({.checkpoint_steps = 2});
  EXPECT_THAT(Complete(0), IsEmpty());
  auto due = Complete(1);
  ASSERT_THAT(due, SizeIs(1));
  ExpectCheck(due[0], 0, 0, 2, 32);
  ASSERT_TRUE(audit_.EpochSoFar(2).has_value());
  ExpectCheck(*audit_.EpochSoFar(2), 0, 0, 2, 32);
  due = Complete(2);
  ASSERT_THAT(due, SizeIs(2));
  ExpectCheck(due[0], 0, 2, 3, 8);
  ExpectCheck(due[1], 0, 0, 3, 40);
  EXPECT_THAT(audit_.checks(), SizeIs(3));
}

TEST_F(VisitAuditTest, AJobThatGoesBackGoesOnWithTheSumOfItsCheckpoint) {
  Begin({.checkpoint_steps = 2});
  Complete(0);
  Complete(1);
  const std::optional<v1::VisitCheck> kept = audit_.EpochSoFar(2);
  Complete(2);
  Complete(3);  // lost
  Begin({.checkpoint_steps = 2, .start_version = 2}, kept);
  const auto due = Complete(2);
  ASSERT_THAT(due, SizeIs(2));
  ExpectCheck(due[0], 0, 2, 3, 8);
  ExpectCheck(due[1], 0, 0, 3, 40);
  EXPECT_THAT(audit_.checks(), SizeIs(3)) << "what was lost is not shown";
}

TEST_F(VisitAuditTest, WithoutThatSumAnEpochIsCheckedInItsPartsAndTheNextAsAWhole) {
  v1::VisitCheck other;  // of another version
  other.set_end(1);
  for (const auto& kept : {std::optional<v1::VisitCheck>(), std::optional(other)}) {
    Begin({.start_version = 2}, kept);
    auto due = Complete(2);
    ASSERT_THAT(due, SizeIs(1));
    ExpectCheck(due[0], 0, 2, 3, 8);
    Complete(3);
    Complete(4);
    due = Complete(5);
    ASSERT_THAT(due, SizeIs(1));
    ExpectCheck(due[0], 1, 3, 6, 40);
  }
}

TEST_F(VisitAuditTest, AnswersAreComparedAndShown) {
  Begin({.checkpoint_steps = 1});
  const v1::VisitCheck first = Complete(0).at(0), second = Complete(1).at(0);
  EXPECT_TRUE(audit_.Answered(Expecting(first, 16, first.visits())));
  EXPECT_EQ(audit_.checks()[0].expected_samples(), 16u);
  EXPECT_EQ(audit_.checks()[1].expected_samples(), 0u);
  EXPECT_FALSE(audit_.Answered(Expecting(second, 16, second.visits() + 1))) << "one sample for another";
  EXPECT_FALSE(audit_.Answered(Expecting(second, 15, second.visits())));
  EXPECT_EQ(audit_.mismatches(), 2u);
}

TEST_F(VisitAuditTest, OnlyTheNewestChecksAreShownAndAllAreCounted) {
  Begin({.epochs = 9});
  const auto first = [&] {
    Complete(0);
    Complete(1);
    return Complete(2).at(0);
  }();
  for (uint64_t step = 3; step < 27; ++step) Complete(step);
  EXPECT_THAT(audit_.checks(), SizeIs(VisitAudit::kChecksShown));
  EXPECT_EQ(audit_.checks().back().end(), 27u);
  EXPECT_FALSE(audit_.Answered(Expecting(first, 41, first.visits())));
  EXPECT_EQ(audit_.mismatches(), 1u);
}

}  // namespace
}  // namespace millrace
