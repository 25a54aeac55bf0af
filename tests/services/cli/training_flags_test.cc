#include "services/cli/training_flags.h"

#include <algorithm>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/train_options.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using Schedule = v1::LearningRateSchedule;

TrainingFlags Parse(std::vector<std::string> arguments) {
  TrainingFlags flags;
  CLI::App app;
  AddTrainingFlags(app, flags, "");
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  return flags;
}

absl::StatusOr<v1::JobSpec> Apply(const std::vector<std::string>& arguments, const v1::JobSpec* previous = nullptr,
                                  uint64_t train_samples = 60'000) {
  JobFlags flags;
  flags.training = Parse(arguments);
  return MakeJobSpec(flags, previous, train_samples);
}

TEST(TrainingFlagsTest, NoFlagLeavesTheJobAsItIs) {
  const v1::JobSpec spec = *Apply({});
  EXPECT_FALSE(spec.has_schedule());
  EXPECT_FALSE(spec.has_early_stopping());
  EXPECT_EQ(spec.clip_norm(), 0);
  EXPECT_EQ(spec.label_smoothing(), 0);
  EXPECT_FALSE(spec.publish_best());
}

TEST(TrainingFlagsTest, EveryFlagReachesTheJob) {
  const v1::JobSpec spec =
      *Apply({"--schedule", "cosine", "--warmup-steps", "100", "--final-learning-rate", "0.0001", "--clip-norm", "2.5",
              "--label-smoothing", "0.1", "--best-by", "accuracy", "--early-stopping-patience", "3",
              "--early-stopping-min-delta", "0.001", "--serve-best"});
  EXPECT_EQ(spec.schedule().kind(), Schedule::KIND_COSINE);
  EXPECT_EQ(spec.schedule().warmup_steps(), 100u);
  EXPECT_EQ(spec.schedule().final_learning_rate(), 1e-4);
  EXPECT_EQ(spec.clip_norm(), 2.5);
  EXPECT_EQ(spec.label_smoothing(), 0.1);
  EXPECT_EQ(spec.best_by(), v1::BEST_BY_ACCURACY);
  EXPECT_EQ(spec.early_stopping().patience(), 3u);
  EXPECT_EQ(spec.early_stopping().min_delta(), 1e-3);
  EXPECT_TRUE(spec.publish_best());
  EXPECT_EQ(DescribeSchedule(spec.schedule()), "cosine after 100 steps of warm-up");
  const v1::JobSpec step = *Apply({"--schedule", "step", "--schedule-gamma", "0.3", "--schedule-steps", "50"});
  EXPECT_EQ(step.schedule().gamma(), 0.3);
  EXPECT_EQ(step.schedule().steps(), 50u);
  EXPECT_EQ(DescribeSchedule(step.schedule()), "step");
}

TEST(TrainingFlagsTest, SchedulesHaveTheirDefaults) {
  EXPECT_EQ(Apply({"--schedule", "step"})->schedule().gamma(), 0.1);
  EXPECT_FALSE(Apply({"--schedule", "one-cycle"})->schedule().has_final_learning_rate());
  EXPECT_TRUE(Apply({"--schedule", "one-cycle", "--final-learning-rate", "0"})->schedule().has_final_learning_rate());
  EXPECT_FALSE(Apply({"--schedule", "constant"})->has_schedule());
  EXPECT_EQ(Apply({"--warmup-steps", "10"})->schedule().warmup_steps(), 10u);
}

TEST(TrainingFlagsTest, ResumingKeepsWhatNoFlagNames) {
  const v1::JobSpec previous =
      *Apply({"--schedule", "step", "--schedule-gamma", "0.5", "--serve-best", "--early-stopping-patience", "2"});
  const v1::JobSpec same = *Apply({"--schedule", "step"}, &previous);
  EXPECT_EQ(same.SerializeAsString(), previous.SerializeAsString());
  EXPECT_EQ(Apply({"--schedule-steps", "7"}, &previous)->schedule().gamma(), 0.5);
  EXPECT_FALSE(Apply({"--serve-best=false"}, &previous)->publish_best());
  EXPECT_EQ(Apply({"--early-stopping-patience", "0"}, &previous)->early_stopping().patience(), 0u);
}

TEST(TrainingFlagsTest, FlagsThatDoNotGoTogetherAreNamed) {
  const auto refused = [](const char* what) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)); };
  EXPECT_THAT(Apply({"--schedule-gamma", "0.5"}), refused("--schedule-gamma is only for --schedule step"));
  EXPECT_THAT(Apply({"--schedule", "cosine", "--schedule-steps", "5"}), refused("--schedule-steps is only for"));
  EXPECT_THAT(Apply({"--schedule", "step", "--final-learning-rate", "0"}),
              refused("--final-learning-rate is only for"));
  EXPECT_THAT(Apply({"--schedule", "cosine", "--final-learning-rate", "0.5"}), refused("is over --learning-rate"));
  EXPECT_THAT(Apply({"--early-stopping-min-delta", "0.5"}), refused("needs --early-stopping-patience"));
  EXPECT_THAT(Apply({"--early-stopping-patience", "2"}, nullptr, 5), refused("--validation-count is 0"));
  EXPECT_THAT(Apply({"--serve-best"}, nullptr, 5), refused("--validation-count is 0"));
}

TEST(TrainingFlagsTest, BadValuesDoNotParse) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"--schedule", "linear"},
                                             {"--schedule-gamma", "0"},
                                             {"--schedule-gamma", "2"},
                                             {"--warmup-steps", "-1"},
                                             {"--clip-norm", "-1"},
                                             {"--label-smoothing", "1"},
                                             {"--best-by", "size"},
                                             {"--early-stopping-patience", "-2"}}) {
    EXPECT_THROW(Parse(arguments), CLI::ParseError) << arguments[0];
  }
}

}  // namespace
}  // namespace millrace
