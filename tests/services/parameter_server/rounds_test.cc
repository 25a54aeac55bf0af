#include "services/parameter_server/rounds.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> AllRounds(const v1::JobPlan& plan) {
  std::vector<std::string> names;
  for (auto round = FirstRound(plan); round.has_value(); round = NextRound(plan, *round)) {
    names.push_back(RoundName(*round));
  }
  return names;
}

TEST(RoundsTest, EveryEpochIsValidatedAndTheLastTested) {
  EXPECT_THAT(AllRounds(TestPlan().Build()),
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
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 3}.Build()),
              ElementsAre("validation at version 3", "step 3", "step 4", "step 5", "validation at version 6",
                          "test at version 6"));
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 5}.Build()),
              ElementsAre("step 5", "validation at version 6", "test at version 6"));
  EXPECT_THAT(AllRounds(TestPlan{.start_version = 6}.Build()),
              ElementsAre("validation at version 6", "test at version 6"));
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
