#include "common/job_text.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/training_status.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(EstimateRemainingTest, GoesByThePaceOfThisRun) {
  v1::JobStatus status = TrainingStatus();
  EXPECT_EQ(EstimateRemaining(status), absl::Seconds(112.3 / 1123 * (4220 - 1123)));
  status.mutable_plan()->set_start_version(1000);
  EXPECT_EQ(EstimateRemaining(status), absl::Seconds(112.3 / 123 * (4220 - 1123)));
  status.mutable_plan()->set_start_version(1123);
  EXPECT_EQ(EstimateRemaining(status), std::nullopt);
}

TEST(FormatProgressTest, SaysWhereTheJobIs) {
  EXPECT_EQ(FormatProgress(TrainingStatus()), "epoch 3/10  step 1,123/4,220  loss 0.0512  12,345 images/s  ETA 5:09");
  v1::JobStatus status = TrainingStatus();
  status.mutable_plan()->mutable_spec()->mutable_schedule()->set_warmup_steps(2000);
  status.set_learning_rate(0.000562);
  EXPECT_EQ(FormatProgress(status),
            "epoch 3/10  step 1,123/4,220  loss 0.0512  rate 0.000562  12,345 images/s  ETA 5:09");
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("12,345 images/s, learning rate 0.000562\n"));
  status.set_version(0);
  status.set_epoch(0);
  EXPECT_THAT(FormatProgress(status), HasSubstr("epoch 1/10  step 0/4,220"));
  EXPECT_THAT(FormatProgress(status), HasSubstr("ETA -:--"));
  status.set_epoch(10);
  status.set_state(v1::JobStatus::STATE_EVALUATING);
  EXPECT_EQ(FormatProgress(status), "epoch 10/10  step 0/4,220  evaluating");
  status.set_state(v1::JobStatus::STATE_FAILED);
  status.set_failure("no space");
  EXPECT_EQ(FormatProgress(status), "failed: no space");
}

TEST(FormatEvaluationTest, NamesAnAccuracyWhereThereIsOne) {
  v1::Evaluation evaluation;
  evaluation.set_epoch(3);
  evaluation.set_version(1266);
  evaluation.set_loss(0.0571);
  EXPECT_EQ(FormatEvaluation(evaluation, 10), "epoch 3/10 done at step 1,266: validation loss 0.0571");
  v1::JobStatus status = TrainingStatus();
  status.clear_train_accuracy();
  *status.add_validation() = evaluation;
  EXPECT_THAT(FormatJobStatus(status), Not(HasSubstr("accuracy")));
  evaluation.set_accuracy(0.9832);
  EXPECT_EQ(FormatEvaluation(evaluation, 10),
            "epoch 3/10 done at step 1,266: validation loss 0.0571, accuracy 98.32 %");
  status.set_train_accuracy(0);
  *status.mutable_validation(0) = evaluation;
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("accuracy 0.00 %"));
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("accuracy 98.32 % of 0 samples"));
}

TEST(FormatJobStatusTest, SaysWhatEveryPartDoesAndWaitsFor) {
  v1::JobStatus status = TrainingStatus();
  status.set_waiting_for("step 812: slot 5 leased to worker-2, last heard 3.1 s ago");
  status.set_committed_version(800);
  status.mutable_plan()->mutable_spec()->set_model_name("mnist");
  v1::WorkerStatus& worker = *status.add_workers();
  worker.set_worker("worker-2");
  worker.set_doing("computing slots [4, 6) of step 812");
  worker.set_process_id(77);
  for (uint32_t number = 0; number < 2; ++number) {
    v1::ShardInfo& shard = *status.add_shards();
    shard.set_shard(number);
    shard.set_begin(640 * number);
    shard.set_end(640 * number + 640);
  }
  status.mutable_shards(1)->set_address("unix:/s");
  const std::string text = FormatJobStatus(status, {{1, "version 812, waiting for step 812: slots 5-7"}});
  EXPECT_THAT(text, HasSubstr("  state        training\n"));
  EXPECT_THAT(text, HasSubstr("  progress     epoch 3/10  step 1,123/4,220  loss"));
  EXPECT_THAT(text, HasSubstr("  waiting for  step 812: slot 5 leased to worker-2, last heard 3.1 s ago\n"));
  EXPECT_THAT(text, HasSubstr("  checkpoint   step 800\n"));
  EXPECT_THAT(text, HasSubstr("  job          mnist, network "));
  EXPECT_THAT(text, HasSubstr("  worker-2     computing slots [4, 6) of step 812 (process 77"));
  EXPECT_THAT(text, HasSubstr("  shard 0      parameters 0 to 640 at (not registered)\n"));
  EXPECT_THAT(
      text,
      HasSubstr("  shard 1      parameters 640 to 1280 at unix:/s, version 812, waiting for step 812: slots 5-7\n"));
}

TEST(FormatJobStatusTest, ShowsEveryDataReplica) {
  v1::JobStatus status = TrainingStatus();
  v1::DataReplicaStatus& first = *status.add_data_replicas();
  first.set_address("unix:/a");
  first.set_state(v1::DataReplicaStatus::STATE_UP);
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("  data         up at unix:/a\n"));
  v1::DataReplicaStatus& second = *status.add_data_replicas();
  second.set_address("unix:/b");
  second.set_state(v1::DataReplicaStatus::STATE_DOWN);
  second.set_since_seconds(12.3);
  second.set_reason("Connection refused");
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("  data 0       up at unix:/a\n"
                                                 "  data 1       DOWN for 12 s at unix:/b: Connection refused\n"));
}

TEST(FormatJobStatusTest, NamesTheBestVersionAndWhyTheJobEnded) {
  v1::JobStatus status = TrainingStatus();
  EXPECT_THAT(FormatJobStatus(status), Not(HasSubstr("best")));
  status.mutable_plan()->mutable_spec()->mutable_early_stopping()->set_patience(3);
  status.mutable_best()->set_version(1688);
  status.mutable_best()->set_epoch(4);
  status.mutable_best()->set_loss(0.0432);
  status.set_stopped_early(true);
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("  best         validation loss 0.0432 of 0 samples at step 1,688"));
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("stopped early: the last 3 epochs were not better than those before; "
                                                 "the best is epoch 4 (version 1,688)\n"));
  status.mutable_plan()->mutable_spec()->mutable_early_stopping()->set_min_delta(0.01);
  status.mutable_plan()->mutable_spec()->mutable_early_stopping()->set_patience(1);
  EXPECT_THAT(FormatEarlyStop(status),
              HasSubstr("the last epoch was not better than those before by more than 0.01; the best is epoch 4"));
}

TEST(FormatJobStatusTest, BeforeThereIsAPlanThereIsNothingOfIt) {
  v1::JobStatus status;
  status.set_state(v1::JobStatus::STATE_STARTING);
  status.set_waiting_for("the data service at unix:/d");
  EXPECT_EQ(FormatJobStatus(status),
            "  state        starting\n  progress     starting\n  waiting for  the data service at unix:/d\n");
}

TEST(FormatJobStatusTest, WhatIsLostOrFailedIsSaid) {
  v1::JobStatus status = TrainingStatus();
  EXPECT_THAT(FormatJobStatus(status), Not(HasSubstr("NOT SAVED")));
  status.set_checkpoint_error("version 844: no space left on device");
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("  NOT SAVED    version 844: no space left on device\n"));
  status.set_state(v1::JobStatus::STATE_FAILED);
  status.set_failure("shard 1 is gone");
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("failed: shard 1 is gone\n"));
}

TEST(FormatJobStatusTest, TellsTheLastRecovery) {
  v1::JobStatus status = TrainingStatus();
  EXPECT_THAT(FormatJobStatus(status), Not(HasSubstr("recoveries")));
  status.set_recovery_count(3);
  v1::Recovery& recovery = *status.add_recoveries();
  recovery.set_reason("shard 1 was restarted");
  recovery.set_version(812);
  recovery.set_start_version(800);
  recovery.set_seconds(2.25);
  EXPECT_THAT(FormatJobStatus(status),
              HasSubstr("  recoveries   3; the last: shard 1 was restarted, from step 812 back "
                        "to 800, no step for 2.2 s\n"));
  status.set_state(v1::JobStatus::STATE_RECOVERING);
  EXPECT_THAT(FormatJobStatus(status), HasSubstr("  progress     going back from step 812 to the newest checkpoint\n"));
}

TEST(FormatVisitsTest, SaysWhetherEachSampleWasTrainedOnce) {
  v1::JobStatus status = TrainingStatus();
  EXPECT_EQ(FormatVisits(status), "");
  EXPECT_THAT(FormatJobStatus(status), Not(HasSubstr("visits")));
  status.mutable_plan()->set_steps_per_epoch(422);
  v1::VisitCheck& check = *status.add_visit_checks();
  check.set_epoch(1);
  check.set_begin(422);
  check.set_end(844);
  check.set_samples(54'000);
  check.set_visits(0xabcdef);
  EXPECT_EQ(FormatVisits(status), "epoch 2: 54,000 samples, not checked yet: the data service has not answered");
  check.set_expected_samples(54'000);
  check.set_expected_visits(0xabcdef);
  EXPECT_THAT(FormatJobStatus(status),
              HasSubstr("  visits       epoch 2: 54,000 samples, each once (digest 0000000000abcdef)\n"));
  check.set_end(800);
  EXPECT_THAT(FormatVisits(status), HasSubstr("epoch 2, steps 422 to 800: 54,000 samples, each once"));
  status.set_visit_mismatches(2);
  check.set_expected_visits(0xabcdee);
  EXPECT_THAT(FormatVisits(status), HasSubstr("54,000 samples, NOT EACH ONCE; CHECKS THAT DID NOT COME OUT EQUAL: 2"));
  check.set_expected_samples(54'001);
  EXPECT_THAT(FormatVisits(status), HasSubstr("NOT THE 54,001 THAT THERE ARE"));
}

TEST(FormatJobStatusTest, ShowsTheLastEvaluations) {
  v1::JobStatus status = TrainingStatus();
  for (int epoch = 1; epoch <= 7; ++epoch) {
    v1::Evaluation& evaluation = *status.add_validation();
    evaluation.set_epoch(epoch);
    evaluation.set_version(422 * epoch);
    evaluation.set_loss(0.0571);
    evaluation.set_accuracy(0.9832);
    evaluation.set_samples(6000);
  }
  *status.mutable_test() = status.validation(6);
  const std::string text = FormatJobStatus(status);
  EXPECT_THAT(text,
              HasSubstr("  epoch 7      validation loss 0.0571, accuracy 98.32 % of 6,000 samples at step 2,954\n"));
  EXPECT_THAT(text, HasSubstr("  epoch 3  "));
  EXPECT_THAT(text, Not(HasSubstr("  epoch 2  ")));
  EXPECT_THAT(text, HasSubstr("  test         loss 0.0571, accuracy 98.32 %"));
}

}  // namespace
}  // namespace millrace
