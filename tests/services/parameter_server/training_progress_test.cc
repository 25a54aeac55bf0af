#include "services/parameter_server/training_progress.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(TrainingProgressTest, IsZeroBeforeTheFirstStep) {
  const TrainingProgress progress;
  EXPECT_EQ(progress.loss(), 0);
  EXPECT_EQ(progress.accuracy(), 0);
  EXPECT_EQ(progress.images_per_second(), 0);
}

TEST(TrainingProgressTest, LossIsThatOfTheLastHundredSteps) {
  TrainingProgress progress;
  for (int i = 0; i < 50; ++i) progress.StepCompleted({.samples = 10, .loss = 1000, .correct = 0}, absl::Seconds(1));
  for (int i = 0; i < 100; ++i) progress.StepCompleted({.samples = 10, .loss = 5, .correct = 8}, absl::Seconds(1));
  EXPECT_DOUBLE_EQ(progress.loss(), 0.5);
  EXPECT_DOUBLE_EQ(progress.accuracy(), 0.8);
  EXPECT_EQ(progress.samples(), 1500u);
  EXPECT_DOUBLE_EQ(progress.training_seconds(), 150);
}

TEST(TrainingProgressTest, TheRateFollowsTheLastSeconds) {
  TrainingProgress progress;
  for (int i = 0; i < 100; ++i) progress.StepCompleted({.samples = 10}, absl::Seconds(1));
  for (int i = 0; i < 100; ++i) progress.StepCompleted({.samples = 10}, absl::Milliseconds(100));
  EXPECT_NEAR(progress.images_per_second(), 100, 1e-6);
}

}  // namespace
}  // namespace millrace
