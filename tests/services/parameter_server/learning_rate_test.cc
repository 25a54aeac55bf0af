#include "services/parameter_server/learning_rate.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using Schedule = v1::LearningRateSchedule;

Schedule Of(Schedule::Kind kind, uint64_t warmup_steps = 0) {
  Schedule schedule;
  schedule.set_kind(kind);
  schedule.set_warmup_steps(warmup_steps);
  if (kind == Schedule::KIND_STEP) {
    schedule.set_gamma(0.5);
    schedule.set_steps(4);
  }
  return schedule;
}

v1::JobPlan Plan(const Schedule& schedule, uint64_t total_steps) {
  v1::JobPlan plan;
  plan.mutable_spec()->mutable_optimizer()->set_learning_rate(0.1);
  *plan.mutable_spec()->mutable_schedule() = schedule;
  plan.set_total_steps(total_steps);
  return plan;
}

void ExpectRates(const Schedule& schedule, const std::vector<double>& expected) {
  const v1::JobPlan plan = Plan(schedule, expected.size());
  for (uint64_t step = 0; step < expected.size(); ++step) {
    EXPECT_NEAR(LearningRateAt(plan, step), expected[step], 1e-15) << schedule.ShortDebugString() << ", step " << step;
  }
  EXPECT_EQ(LearningRateAt(plan, expected.size()), LearningRateAt(plan, expected.size() - 1)) << "after the job";
}

// The rates that torch/optim/lr_scheduler.py of PyTorch 1.13.1 gives for lr = 0.1, stepped 12 times.
TEST(LearningRateTest, IsThatOfPyTorchsScheduleOfTheSameName) {
  // StepLR(step_size=4, gamma=0.5)
  ExpectRates(Of(Schedule::KIND_STEP), {0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025});
  // CosineAnnealingLR(T_max=12)
  ExpectRates(Of(Schedule::KIND_COSINE),
              {0.1, 0.09829629131445342, 0.09330127018922195, 0.08535533905932738, 0.07500000000000001,
               0.06294095225512605, 0.05000000000000001, 0.03705904774487397, 0.025000000000000015, 0.01464466094067263,
               0.006698729810778066, 0.0017037086855465904});
  // OneCycleLR(max_lr=0.1, total_steps=12, cycle_momentum=False)
  ExpectRates(Of(Schedule::KIND_ONE_CYCLE),
              {0.0040000000000000036, 0.0349789654219583, 0.08792851591221287, 0.09944154354509119, 0.09330129698414118,
               0.0811745653949763, 0.06473789976951033, 0.046263710266697504, 0.028306099820869922, 0.01334775301888306,
               0.0034566987425395223, 4e-07});
  // OneCycleLR(max_lr=0.1, total_steps=12, pct_start=5/12, final_div_factor=4, cycle_momentum=False)
  Schedule cycle = Of(Schedule::KIND_ONE_CYCLE, 4);
  cycle.set_final_learning_rate(0.001);
  ExpectRates(cycle, {0.0040000000000000036, 0.018058874503045733, 0.052000000000000005, 0.08594112549695429, 0.1,
                      0.09509795896116975, 0.08136274519200731, 0.061514786230837566, 0.03948521376916244,
                      0.019637254807992693, 0.005902041038830258, 0.001});
}

// SequentialLR([LinearLR(start_factor=1/4, total_iters=3), ...], milestones=[3]) of the same.
TEST(LearningRateTest, AWarmUpComesBeforeTheRestOfTheSchedule) {
  // ConstantLR(factor=1)
  ExpectRates(Of(Schedule::KIND_UNSPECIFIED, 3), {0.025, 0.05, 0.07500000000000001, 0.1, 0.1, 0.1});
  ExpectRates(Of(Schedule::KIND_CONSTANT, 3), {0.025, 0.05, 0.07500000000000001, 0.1, 0.1, 0.1});
  // StepLR(step_size=4, gamma=0.5)
  ExpectRates(Of(Schedule::KIND_STEP, 3),
              {0.025, 0.05, 0.07500000000000001, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025});
  // CosineAnnealingLR(T_max=9, eta_min=0.01)
  Schedule cosine = Of(Schedule::KIND_COSINE, 3);
  cosine.set_final_learning_rate(0.01);
  ExpectRates(cosine, {0.025, 0.05, 0.07500000000000001, 0.1, 0.09728616793536589, 0.08947199994035401,
                       0.07750000000000001, 0.06281416799501188, 0.047185832004988146, 0.032500000000000015,
                       0.020528000059645994, 0.012713832064634126});
}

TEST(LearningRateTest, WithoutAScheduleItIsTheOptimizers) {
  v1::JobPlan plan = Plan({}, 1000);
  plan.mutable_spec()->clear_schedule();
  for (const uint64_t step : {0, 1, 999, 5000}) EXPECT_EQ(LearningRateAt(plan, step), 0.1);
}

TEST(LearningRateTest, StepsAreAThirdOfTheJobByDefault) {
  Schedule schedule = Of(Schedule::KIND_STEP);
  schedule.clear_steps();
  ExpectRates(schedule, {0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025});
  EXPECT_TRUE(DependsOnTotalSteps(schedule));
  EXPECT_FALSE(DependsOnTotalSteps(Of(Schedule::KIND_STEP)));
  EXPECT_FALSE(DependsOnTotalSteps(Of(Schedule::KIND_CONSTANT, 10)));
  EXPECT_TRUE(DependsOnTotalSteps(Of(Schedule::KIND_COSINE)));
  EXPECT_TRUE(DependsOnTotalSteps(Of(Schedule::KIND_ONE_CYCLE)));
}

// However short the job and wherever the top of the cycle, the rate stays within its bounds and reaches its highest
// value wherever a whole step lies on the top.
TEST(LearningRateTest, EveryRateOfEveryJobIsWithinBounds) {
  for (uint64_t total = 1; total <= 40; ++total) {
    for (uint64_t warmup = 0; warmup < total; ++warmup) {
      for (const auto kind :
           {Schedule::KIND_CONSTANT, Schedule::KIND_STEP, Schedule::KIND_COSINE, Schedule::KIND_ONE_CYCLE}) {
        const v1::JobPlan plan = Plan(Of(kind, warmup), total);
        for (uint64_t step = 0; step < total; ++step) {
          const double rate = LearningRateAt(plan, step);
          ASSERT_TRUE(rate >= 0 && rate <= 0.1 * (1 + 1e-12)) << rate << " at " << step << " of " << total;
        }
        if (warmup == 0) continue;
        ASSERT_NEAR(LearningRateAt(plan, warmup), 0.1, 1e-15);
      }
    }
  }
}

TEST(CheckScheduleTest, NamesWhatIsWrong) {
  const auto error = [](Schedule::Kind kind, auto change) {
    Schedule schedule = Of(kind);
    change(schedule);
    return CheckSchedule(schedule, 0.1);
  };
  const auto as_it_is = [](Schedule&) {};
  for (const auto kind : {Schedule::KIND_UNSPECIFIED, Schedule::KIND_CONSTANT, Schedule::KIND_STEP,
                          Schedule::KIND_COSINE, Schedule::KIND_ONE_CYCLE}) {
    EXPECT_THAT(error(kind, as_it_is), IsOk());
  }
  const auto refused = [](const char* what) { return StatusIs(StatusCode::kInvalidArgument, HasSubstr(what)); };
  EXPECT_THAT(error(static_cast<Schedule::Kind>(9), as_it_is), refused("schedule.kind"));
  EXPECT_THAT(error(Schedule::KIND_STEP, [](auto& s) { s.set_gamma(0); }), refused("schedule.gamma 0 must be"));
  EXPECT_THAT(error(Schedule::KIND_STEP, [](auto& s) { s.set_gamma(1.5); }), refused("schedule.gamma 1.5"));
  EXPECT_THAT(error(Schedule::KIND_COSINE, [](auto& s) { s.set_gamma(0.5); }), refused("gamma is only for STEP"));
  EXPECT_THAT(error(Schedule::KIND_COSINE, [](auto& s) { s.set_steps(5); }), refused("steps is only for STEP"));
  EXPECT_THAT(error(Schedule::KIND_COSINE, [](auto& s) { s.set_final_learning_rate(0.2); }),
              refused("schedule.final_learning_rate 0.2 must be at least 0 and at most the learning rate 0.1"));
  EXPECT_THAT(error(Schedule::KIND_STEP, [](auto& s) { s.set_final_learning_rate(0); }), refused("only for COSINE"));
  EXPECT_THAT(error(Schedule::KIND_UNSPECIFIED, [](auto& s) { s.set_final_learning_rate(0); }),
              refused("only for COSINE"));
}

}  // namespace
}  // namespace millrace
