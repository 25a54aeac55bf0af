#include "services/cli/summary.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TrainSummary Finished() {
  TrainSummary summary{.workers = 2, .wall_seconds = 83.5, .out = "out/mnist"};
  v1::JobStatus& status = summary.status;
  status.set_version(4220);
  status.set_epoch(10);
  status.set_trained_samples(540'000);
  status.set_training_seconds(60);
  status.set_weights_sha256("3a7f");
  status.mutable_test()->set_accuracy(0.9841);
  status.mutable_test()->set_loss(0.05);
  status.add_shards();
  v1::JobPlan& plan = *status.mutable_plan();
  plan.set_parameter_count(693'962);
  plan.mutable_spec()->set_slots(4);
  plan.mutable_spec()->set_architecture("cnn");
  plan.mutable_dataset()->set_name("mnist");
  plan.mutable_dataset()->set_train_count(54'000);
  summary.served = ServedResult{.version = 4220, .requests = 10'000, .accuracy = 0.984, .p50_ms = 0.4, .p99_ms = 0.9};
  return summary;
}

// The contract of `train --json`: exactly these fields.
TEST(SummaryJsonTest, HasExactlyTheDocumentedFields) {
  const auto json = nlohmann::ordered_json::parse(SummaryJson(Finished()));
  std::vector<std::string> names;
  for (const auto& [name, value] : json.items()) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("steps", "epochs", "workers", "shards", "slots", "test_accuracy", "test_loss",
                                 "images_per_second", "wall_seconds", "recoveries", "seconds_lost", "weights_sha256",
                                 "optimizer_sha256", "dataset", "served", "best", "stopped_early", "visit_mismatches"));
  names.clear();
  for (const auto& [name, value] : json["served"].items()) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("version", "requests", "accuracy", "p50_ms", "p99_ms"));
  EXPECT_EQ(json["steps"], 4220);
  EXPECT_EQ(json["epochs"], 10);
  EXPECT_EQ(json["workers"], 2);
  EXPECT_EQ(json["shards"], 1);
  EXPECT_EQ(json["slots"], 4);
  EXPECT_EQ(json["images_per_second"], 9000.0);
  EXPECT_EQ(json["weights_sha256"], "3a7f");
  EXPECT_EQ(json["dataset"], "mnist");
}

TEST(SummaryJsonTest, TellsTheBestVersion) {
  TrainSummary summary = Finished();
  EXPECT_TRUE(nlohmann::json::parse(SummaryJson(summary))["best"].is_null()) << "without validation";
  summary.status.mutable_best()->set_version(3798);
  summary.status.mutable_best()->set_epoch(9);
  summary.status.mutable_best()->set_accuracy(0.9875);
  summary.status.mutable_best()->set_loss(0.04);
  EXPECT_TRUE(nlohmann::json::parse(SummaryJson(summary))["best"]["test_accuracy"].is_null());
  summary.status.mutable_best_test()->set_accuracy(0.986);
  summary.status.mutable_best_test()->set_loss(0.05);
  const auto json = nlohmann::json::parse(SummaryJson(summary));
  EXPECT_EQ(json["best"]["version"], 3798);
  EXPECT_EQ(json["best"]["epoch"], 9);
  EXPECT_EQ(json["best"]["validation_accuracy"], 0.9875);
  EXPECT_EQ(json["best"]["test_accuracy"], 0.986);
  EXPECT_EQ(json["stopped_early"], false);
  EXPECT_THAT(FormatSummary(summary), HasSubstr("3798, epoch 9: validation accuracy 98.75 %, loss 0.0400\n"));
  EXPECT_THAT(FormatSummary(summary), HasSubstr("its test      accuracy 98.60 %, loss 0.0500\n"));
  summary.status.mutable_best()->set_version(4220);
  EXPECT_THAT(FormatSummary(summary), Not(HasSubstr("its test"))) << "the last version's is there already";
}

TEST(FormatSummaryTest, TellsWhetherEachSampleWasTrainedOnce) {
  TrainSummary summary = Finished();
  EXPECT_THAT(FormatSummary(summary), Not(HasSubstr("visits")));
  v1::VisitCheck& check = *summary.status.add_visit_checks();
  check.set_samples(54'000);
  check.set_expected_samples(54'000);
  summary.status.mutable_plan()->set_steps_per_epoch(0);
  EXPECT_THAT(FormatSummary(summary), HasSubstr("visits    epoch 1: 54,000 samples, each once"));
  summary.status.set_visit_mismatches(1);
  EXPECT_EQ(nlohmann::json::parse(SummaryJson(summary))["visit_mismatches"], 1);
}

TEST(SummaryJsonTest, ServedIsNullWithoutAModelService) {
  TrainSummary summary = Finished();
  summary.served.reset();
  summary.status.set_training_seconds(0);
  const auto json = nlohmann::json::parse(SummaryJson(summary));
  EXPECT_TRUE(json["served"].is_null());
  EXPECT_EQ(json["images_per_second"], 0.0);
}

TEST(FormatSummaryTest, TellsHowItWasTrained) {
  TrainSummary summary = Finished();
  v1::JobSpec& job = *summary.status.mutable_plan()->mutable_spec();
  job.mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ADAMW);
  job.mutable_optimizer()->set_learning_rate(0.002);
  job.mutable_optimizer()->set_weight_decay(0.01);
  job.set_batch_size(128);
  job.set_epochs(30);
  EXPECT_THAT(FormatSummary(summary),
              HasSubstr("adamw, learning rate 0.002, weight decay 0.01, batch 128 in 4 slots\n"));
  job.mutable_schedule()->set_kind(v1::LearningRateSchedule::KIND_COSINE);
  job.mutable_schedule()->set_warmup_steps(1000);
  job.set_clip_norm(5);
  job.set_label_smoothing(0.1);
  summary.status.set_stopped_early(true);
  EXPECT_THAT(FormatSummary(summary),
              HasSubstr("adamw, learning rate 0.002 (cosine after 1,000 steps of warm-up), weight decay 0.01, "
                        "clip norm 5, label smoothing 0.1, batch 128 in 4 slots\n"));
  EXPECT_THAT(FormatSummary(summary), HasSubstr("10 epochs of 30, stopped early, 4,220 steps"));
}

TrainSummary Reconstructing() {
  TrainSummary summary = Finished();
  summary.status.mutable_test()->clear_accuracy();
  summary.status.mutable_test()->set_loss(0.00553);
  summary.status.mutable_plan()->set_statistics_count(62);
  summary.served->error = 0.00554;
  return summary;
}

TEST(SummaryJsonTest, WithoutClassesThereIsAnErrorInsteadOfAnAccuracy) {
  const auto json = nlohmann::json::parse(SummaryJson(Reconstructing()));
  EXPECT_TRUE(json["test_accuracy"].is_null());
  EXPECT_EQ(json["test_loss"], 0.00553);
  EXPECT_TRUE(json["served"]["accuracy"].is_null());
  EXPECT_EQ(json["served"]["error"], 0.00554);
}

TEST(FormatSummaryTest, WithoutClassesThereIsAnErrorInsteadOfAnAccuracy) {
  const std::string table = FormatSummary(Reconstructing());
  EXPECT_THAT(table, HasSubstr("test      reconstruction error 0.00553\n"));
  EXPECT_THAT(table, HasSubstr("served    reconstruction error 0.00554 by version 4220 in 10,000 requests"));
  EXPECT_THAT(table, HasSubstr("693,900 parameters\n"));  // statistics are not
  EXPECT_THAT(table, ::testing::Not(HasSubstr("accuracy")));
}

TEST(FormatSummaryTest, TellsWhatWasTrainedAndServed) {
  const std::string table = FormatSummary(Finished());
  EXPECT_THAT(table, HasSubstr("mnist (54,000 train, 0 validation, 0 test)"));
  EXPECT_THAT(table, HasSubstr("cnn, 693,962 parameters"));
  EXPECT_THAT(table, HasSubstr("2 workers, 1 shard\n"));
  EXPECT_THAT(table, HasSubstr("10 epochs, 4,220 steps, 9,000 images/s"));
  EXPECT_THAT(table, HasSubstr("accuracy 98.40 % by version 4220 in 10,000 requests, p50 0.40 ms, p99 0.90 ms"));
  EXPECT_THAT(table, HasSubstr("sha256 3a7f"));
}

}  // namespace
}  // namespace millrace
