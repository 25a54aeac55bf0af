#include "services/parameter_server/rounds.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

// `losses`: what the validations come to, one after the other; what is missing is worse than all before.
std::vector<std::string> AllRounds(const v1::JobPlan& plan, std::vector<double> losses = {},
                                   std::vector<v1::Evaluation> history = {}) {
  losses.resize(100, 1e9);
  std::vector<std::string> names;
  for (auto round = FirstRound(plan, history); round.has_value(); round = NextRound(plan, *round, history)) {
    names.push_back(RoundName(*round));
    if (round->kind != v1::Lease::KIND_VALIDATION) continue;
    v1::Evaluation& evaluation = history.emplace_back();
    evaluation.set_version(round->version);
    evaluation.set_loss(losses[history.size() - 1]);
  }
  return names;
}

v1::JobPlan Stopping(TestPlan plan, uint32_t patience) {
  v1::JobPlan built = plan.Build();
  built.mutable_spec()->mutable_early_stopping()->set_patience(patience);
  return built;
}

TEST(RoundsTest, EveryEpochIsValidatedAndTheLastTested) {
  EXPECT_THAT(AllRounds(TestPlan().Build(), {2, 1}),
              ElementsAre("step 0", "step 1", "step 2", "validation at version 3", "step 3", "step 4", "step 5",
                          "validation at version 6", "test at version 6"));
}

TEST(RoundsTest, SplitsThatAreEmptyAreSkipped) {
  EXPECT_THAT(AllRounds(TestPlan{.epochs = 1, .validation_count = 0}.Build()),
              ElementsAre("step 0", "step 1", "step 2", "test at version 3"));
  EXPECT_THAT(AllRounds(TestPlan{.epochs = 1, .validation_count = 0, .test_count = 0}.Build()),
              ElementsAre("step 0", "step 1", "step 2"));
}

TEST(RoundsTest, AResumedJobRepeatsTheEvaluationOfItsFirstVersion) {
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 3}.Build(), {2, 1}),
              ElementsAre("validation at version 3", "step 3", "step 4", "step 5", "validation at version 6",
                          "test at version 6"));
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 5}.Build()),
              ElementsAre("step 5", "validation at version 6", "test at version 6"));
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 6}.Build()),
              ElementsAre("validation at version 6", "test at version 6"));
}

TEST(RoundsTest, TheBestVersionIsTestedToo) {
  EXPECT_THAT(AllRounds(TestPlan().Build(), {1, 2}),
              ElementsAre("step 0", "step 1", "step 2", "validation at version 3", "step 3", "step 4", "step 5",
                          "validation at version 6", "test at version 6", "test at version 3"));
  EXPECT_THAT(AllRounds(TestPlan{.test_count = 0}.Build(), {1, 2}),
              ElementsAre("step 0", "step 1", "step 2", "validation at version 3", "step 3", "step 4", "step 5",
                          "validation at version 6"));
  std::vector<v1::Evaluation> history(1);
  history[0].set_version(3);
  history[0].set_loss(1);
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 6}.Build(), {1, 2}, history),
              ElementsAre("validation at version 6", "test at version 6", "test at version 3"));
}

TEST(RoundsTest, AJobThatGetsNoBetterEndsEarly) {
  EXPECT_THAT(AllRounds(Stopping({.epochs = 9}, 1), {1, 2}),
              ElementsAre("step 0", "step 1", "step 2", "validation at version 3", "step 3", "step 4", "step 5",
                          "validation at version 6", "test at version 6", "test at version 3"));
  EXPECT_THAT(AllRounds(Stopping({.epochs = 3}, 2), {3, 2, 1}), SizeIs(9 + 3 + 1)) << "it always got better";
  EXPECT_THAT(AllRounds(Stopping({.epochs = 3, .test_count = 0}, 1), {1, 1, 1}), SizeIs(6 + 2));
}

TEST(RoundsTest, AResumedJobThatHadStoppedIsOverAtOnce) {
  std::vector<v1::Evaluation> history(1);
  history[0].set_version(3);
  history[0].set_loss(1);
  const TestPlan resumed{.epochs = 9, .start_version = 6};
  EXPECT_THAT(AllRounds(Stopping(resumed, 1), {1, 2}, history),
              ElementsAre("validation at version 6", "test at version 6", "test at version 3"));
  EXPECT_THAT(AllRounds(Stopping(resumed, 2), {1, 2, 3}, history),
              ElementsAre("validation at version 6", "step 6", "step 7", "step 8", "validation at version 9",
                          "test at version 9", "test at version 3"))
      << "unless it is to be more patient";
}

TEST(RoundsTest, UnitsCoverEverySampleOnce) {
  for (const uint32_t slots : {1u, 3u, 4u, 7u, 32u}) {
    const v1::JobPlan plan = TestPlan{.slots = slots}.Build();
    for (auto round = FirstRound(plan); round.has_value(); round = NextRound(plan, *round)) {
      uint64_t samples = 0;
      for (uint32_t unit = 0; unit < RoundUnits(plan, *round); ++unit) samples += UnitSamples(plan, *round, unit);
      const uint64_t expected = round->is_train()                              ? StepSamples(plan, round->version)
                                : round->kind == v1::Lease::KIND_VALIDATION ? 10u
                                                                               : 12u;
      EXPECT_EQ(samples, expected) << RoundName(*round) << " with " << slots << " slots";
    }
  }
}

TEST(RoundsTest, UnitsHaveNamesForPeople) {
  EXPECT_EQ(UnitsName({v1::Lease::KIND_TRAIN, 1}, 5, 6), "slot 5");
  EXPECT_EQ(UnitsName({v1::Lease::KIND_TRAIN, 1}, 4, 8), "slots [4, 8)");
  EXPECT_EQ(UnitsName({v1::Lease::KIND_TEST, 1}, 0, 2), "units [0, 2)");
}

}  // namespace
}  // namespace millrace
