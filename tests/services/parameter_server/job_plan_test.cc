#include "services/parameter_server/job_plan.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr char kJob[] = R"(
  model_name: "mnist" architecture: "cnn"
  optimizer { kind: OPTIMIZER_KIND_ADAM learning_rate: 1e-3 beta1: 0.9 beta2: 0.999 epsilon: 1e-7 }
  batch_size: 128 slots: 4 epochs: 10 seed: 1 validation_count: 5000 evaluation_batch_size: 500
  normalization: NORMALIZATION_UNIT
)";

v1::JobSpec Job() { return *ParseJobSpec(kJob); }

v1::DatasetInfo Mnist() {
  v1::DatasetInfo dataset;
  dataset.set_channels(1);
  dataset.set_height(28);
  dataset.set_width(28);
  dataset.set_classes(10);
  dataset.set_train_count(55000);
  dataset.set_validation_count(5000);
  dataset.set_test_count(10000);
  dataset.set_mean(0.13);
  dataset.set_standard_deviation(0.31);
  return dataset;
}

TEST(JobPlanTest, AJobFileThatIsNoTextprotoIsRefusedWithItsPlace) {
  EXPECT_THAT(ParseJobSpec("model_name: \"mnist\"\nbatch_sice: 3\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2, column 11")));
}

TEST(JobPlanTest, TheDefaultJobIsValid) { EXPECT_THAT(ValidateJobSpec(Job()), IsOk()); }

TEST(JobPlanTest, EveryLimitIsNamed) {
  const auto error = [](auto change) {
    v1::JobSpec spec = Job();
    change(spec);
    return std::string(ValidateJobSpec(spec).message());
  };
  EXPECT_EQ(error([](auto& job) { job.set_batch_size(100000); }), "batch_size 100000 is over the limit of 65536");
  EXPECT_EQ(error([](auto& job) { job.set_batch_size(0); }), "batch_size 0 is under the minimum of 1");
  EXPECT_EQ(error([](auto& job) { job.set_slots(1025); }), "slots 1025 is over the limit of 1024");
  EXPECT_EQ(error([](auto& job) { job.set_epochs(0); }), "epochs 0 is under the minimum of 1");
  EXPECT_EQ(error([](auto& job) { job.set_evaluation_batch_size(0); }),
            "evaluation_batch_size 0 is under the minimum of 1");
  EXPECT_EQ(error([](auto& job) { job.set_clip_norm(-1); }), "clip_norm -1 must be at least 0 and finite");
  EXPECT_THAT(error([](auto& job) { job.set_clip_norm(1), job.mutable_asynchrony()->set_unbounded(true); }),
              HasSubstr("clip_norm does not go with asynchrony.unbounded"));
  EXPECT_EQ(error([](auto& job) { job.set_label_smoothing(1); }), "label_smoothing 1 must be at least 0 and below 1");
  EXPECT_EQ(error([](auto& job) { job.mutable_early_stopping()->set_min_delta(-1); }),
            "early_stopping.min_delta -1 must be at least 0 and finite");
  EXPECT_THAT(error([](auto& job) { job.mutable_schedule()->set_gamma(0.5); }), HasSubstr("schedule.gamma"));
  EXPECT_THAT(error([](auto& job) { job.set_best_by(static_cast<v1::BestBy>(7)); }), HasSubstr("best_by"));
  EXPECT_THAT(error([](auto& job) { job.set_validation_count(0), job.mutable_early_stopping()->set_patience(1); }),
              HasSubstr("early_stopping.patience needs validation samples"));
  EXPECT_THAT(error([](auto& job) { job.set_validation_count(0), job.set_publish_best(true); }),
              HasSubstr("publish_best needs validation samples"));
  EXPECT_THAT(error([](auto& job) { job.clear_optimizer(); }), HasSubstr("optimizer.learning_rate 0"));
  EXPECT_THAT(error([](auto& job) { job.clear_normalization(); }), HasSubstr("normalization"));
  EXPECT_THAT(error([](auto& job) { job.mutable_augmentation()->set_scale(1); }), HasSubstr("augmentation scale 1"));
  EXPECT_THAT(error([](auto& job) { job.mutable_asynchrony()->set_staleness(17); }),
              HasSubstr("asynchrony.staleness 17 is over the limit of 16"));
  EXPECT_THAT(error([](auto& job) {
                job.mutable_asynchrony()->set_staleness(1), job.mutable_asynchrony()->set_unbounded(true);
              }),
              HasSubstr("asynchrony.unbounded do not go together"));
  EXPECT_THAT(error([](auto& job) { job.mutable_asynchrony()->set_stale_gradients(v1::STALE_GRADIENTS_COMPENSATED); }),
              HasSubstr("asynchrony.compensation 0 must be over 0"));
  EXPECT_THAT(error([](auto& job) { job.set_model_name("../etc"); }), HasSubstr("model_name \"../etc\""));
  EXPECT_THAT(error([](auto& job) { job.set_architecture("torchscript"); }), HasSubstr("torchscript_path"));
}

TEST(JobPlanTest, TheDefaultNetworkAndStepsAreResolved) {
  const auto plan = ResolveJobPlan(Job(), Mnist());
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->parameter_count(), 693962u);
  EXPECT_EQ(plan->steps_per_epoch(), 430u);  // 429 steps of 128 and one of 88
  EXPECT_EQ(plan->total_steps(), 4300u);
  EXPECT_EQ(plan->network().mean(), 0);
  EXPECT_EQ(plan->network().standard_deviation(), 1);
}

TEST(JobPlanTest, AWarmUpMustEndBeforeTheJob) {
  v1::JobSpec spec = Job();
  spec.mutable_schedule()->set_warmup_steps(4299);
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()), IsOk());
  spec.mutable_schedule()->set_warmup_steps(4300);
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("schedule.warmup_steps 4300 must be below the job's 4300 steps")));
}

TEST(JobPlanTest, StandardNormalizationTakesTheDatasetsStatistics) {
  v1::JobSpec spec = Job();
  spec.set_normalization(v1::NORMALIZATION_STANDARD);
  const auto plan = ResolveJobPlan(spec, Mnist());
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->network().mean(), 0.13);
  EXPECT_EQ(plan->network().standard_deviation(), 0.31);
  v1::DatasetInfo blank = Mnist();
  blank.set_standard_deviation(0);
  EXPECT_THAT(ResolveJobPlan(spec, blank),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("standard deviation")));
}

TEST(JobPlanTest, StatisticsAreCountedAndTheLossIsResolved) {
  v1::JobSpec spec = Job();
  EXPECT_EQ(ResolveJobPlan(spec, Mnist())->statistics_count(), 0u);
  EXPECT_EQ(ResolveJobPlan(spec, Mnist())->network().loss(), v1::LOSS_CROSS_ENTROPY);
  spec.set_architecture("cnn_deep");
  EXPECT_EQ(ResolveJobPlan(spec, Mnist())->statistics_count(), 2u * (32 + 64 + 64 + 128));
  spec.set_architecture("autoencoder");
  EXPECT_EQ(ResolveJobPlan(spec, Mnist())->network().loss(), v1::LOSS_MSE);
  spec.set_label_smoothing(0.1);
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("label_smoothing")));
  spec.clear_label_smoothing();
  spec.set_best_by(v1::BEST_BY_ACCURACY);
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("best_by")));
  spec.clear_best_by();
  spec.set_loss(v1::LOSS_CROSS_ENTROPY);
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("loss mse")));
}

TEST(JobPlanTest, WhatCannotBeTrainedIsRefused) {
  v1::JobSpec spec = Job();
  spec.set_architecture("transformer");
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("transformer")));
  spec.set_architecture("torchscript");
  spec.set_torchscript_path("/nowhere/model.pt");
  EXPECT_THAT(ResolveJobPlan(spec, Mnist()), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/model.pt")));
  v1::DatasetInfo one_class = Mnist();
  one_class.set_classes(1);
  EXPECT_THAT(ResolveJobPlan(Job(), one_class), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("classes")));
}

TEST(JobPlanTest, NumbersThatShareAnExponentAreNotForStatistics) {
  v1::JobSpec job = Job();
  job.set_wire(v1::NUMBER_FORMAT_MXINT8);
  EXPECT_THAT(ResolveJobPlan(job, Mnist()), IsOk());
  job.set_architecture("cnn_deep");
  EXPECT_THAT(ResolveJobPlan(job, Mnist()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("batch norm")));
  job.set_wire(v1::NUMBER_FORMAT_BFLOAT16);
  EXPECT_THAT(ResolveJobPlan(job, Mnist()), IsOk());
}

}  // namespace
}  // namespace millrace
