#include "services/parameter_server/checkpoint_manifest.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

CheckpointManifest Sample() {
  CheckpointManifest manifest{.version = 3,
                              .plan = TestPlan().Build(),
                              .fingerprint = {"1.13.1", "AVX2", 2},
                              .files = {{"shard-00000-of-00001.safetensors", 1234, std::string(64, 'a')}},
                              .weights_sha256 = std::string(64, 'b'),
                              .optimizer_sha256 = std::string(64, 'c'),
                              .validation = {},
                              .visits = {}};
  manifest.plan.mutable_spec()->set_seed(0xffffffffffffffffu);
  v1::Evaluation& evaluation = manifest.validation.emplace_back();
  evaluation.set_version(3);
  evaluation.set_loss(0.1 + 0.2);
  return manifest;
}

TEST(CheckpointManifestTest, SurvivesTheRoundTripToTheBit) {
  const CheckpointManifest manifest = Sample();
  const auto read = CheckpointManifestFromJson(CheckpointManifestToJson(manifest));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->version, 3u);
  EXPECT_TRUE(MessageDifferencer::Equals(read->plan, manifest.plan));
  EXPECT_EQ(read->fingerprint, manifest.fingerprint);
  ASSERT_EQ(read->files.size(), 1u);
  EXPECT_EQ(read->files[0].bytes, 1234u);
  EXPECT_EQ(read->weights_sha256, manifest.weights_sha256);
  EXPECT_EQ(read->optimizer_sha256, manifest.optimizer_sha256);
  ASSERT_EQ(read->validation.size(), 1u);
  EXPECT_EQ(read->validation[0].loss(), 0.1 + 0.2);
}

TEST(CheckpointManifestTest, MayNameSlotChecksums) {
  CheckpointManifest manifest = Sample();
  EXPECT_FALSE(CheckpointManifestFromJson(CheckpointManifestToJson(manifest))->slot_checksums.has_value())
      << "as every checkpoint before there were any";
  manifest.slot_checksums = CheckpointFile{"slot-checksums.txt", 77, std::string(64, 'd')};
  const std::string json = CheckpointManifestToJson(manifest);
  const auto read = CheckpointManifestFromJson(json);
  ASSERT_THAT(read, IsOk());
  ASSERT_TRUE(read->slot_checksums.has_value());
  EXPECT_EQ(read->slot_checksums->name, "slot-checksums.txt");
  EXPECT_EQ(read->slot_checksums->bytes, 77u);
  EXPECT_EQ(read->slot_checksums->sha256, std::string(64, 'd'));
  EXPECT_EQ(read->files.size(), 1u);
  EXPECT_THAT(CheckpointManifestFromJson(absl::StrReplaceAll(json, {{"dddd", "DDDD"}})),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("sha256")));
}

TEST(CheckpointManifestTest, KeepsTheVisitsOfAnEpochInItsMiddle) {
  CheckpointManifest manifest = Sample();
  const std::string without = CheckpointManifestToJson(manifest);
  EXPECT_FALSE(CheckpointManifestFromJson(without)->visits.has_value()) << "as in one of an earlier build";
  manifest.visits.emplace().set_epoch(1);
  manifest.visits->set_begin(3);
  manifest.visits->set_end(5);
  manifest.visits->set_samples(32);
  manifest.visits->set_visits(0xfedcba9876543210u);
  const std::string json = CheckpointManifestToJson(manifest);
  const auto read = CheckpointManifestFromJson(json);
  ASSERT_THAT(read, IsOk());
  ASSERT_TRUE(read->visits.has_value());
  EXPECT_TRUE(MessageDifferencer::Equals(*read->visits, *manifest.visits));
  EXPECT_THAT(CheckpointManifestFromJson(absl::StrReplaceAll(json, {{"\"samples\": \"32\"", "\"samples\": \"x\""}})),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("visits")));
}

TEST(CheckpointManifestTest, WhatIsNoManifestIsRefused) {
  const std::string good = CheckpointManifestToJson(Sample());
  EXPECT_THAT(CheckpointManifestFromJson(""), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(CheckpointManifestFromJson("[]"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(CheckpointManifestFromJson("{}"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("format")));
  for (size_t size = 0; size + 2 < good.size(); size += 13) {
    EXPECT_FALSE(CheckpointManifestFromJson(good.substr(0, size)).ok());
  }
  const auto with = [&](absl::string_view from, absl::string_view to) {
    return CheckpointManifestFromJson(absl::StrReplaceAll(good, {{from, to}}));
  };
  EXPECT_THAT(with("\"format_version\": 1", "\"format_version\": 2"), StatusIs(absl::StatusCode::kUnimplemented));
  EXPECT_THAT(with("\"bytes\": 1234", "\"bytes\": -1"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("bytes")));
  EXPECT_THAT(with("shard-00000", "../../etc/x"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("name")));
  EXPECT_THAT(with("bbbb", "BBBB"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("weights_sha256")));
  EXPECT_THAT(with("\"plan\": {", "\"plan\": 3, \"x\": {"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("plan")));
}

TEST(CheckpointManifestTest, OnlyTheSameJobMayGoOn) {
  const CheckpointManifest saved = Sample();
  const auto with = [&](auto change) {
    v1::JobPlan plan = saved.plan;
    change(plan);
    return CheckSameJob(saved, plan);
  };
  EXPECT_THAT(with([](auto&) {}), IsOk());
  EXPECT_THAT(with([](auto& plan) { plan.mutable_spec()->set_epochs(7), plan.set_total_steps(21); }), IsOk());
  EXPECT_THAT(with([](auto& plan) {
                v1::JobSpec& spec = *plan.mutable_spec();
                spec.set_checkpoint_steps(7);
                spec.set_best_by(v1::BEST_BY_ACCURACY);
                spec.mutable_early_stopping()->set_patience(2);
                spec.set_publish_best(true);
              }),
              IsOk());
  const auto another = [](const char* what) {
    return StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(what));
  };
  EXPECT_THAT(with([](auto& plan) { plan.mutable_spec()->set_clip_norm(1); }), another("spec.clip_norm"));
  EXPECT_THAT(with([](auto& plan) { plan.mutable_spec()->set_label_smoothing(0.1); }), another("spec.label_smoothing"));
  EXPECT_THAT(with([](auto& plan) { plan.mutable_spec()->mutable_schedule()->set_warmup_steps(3); }),
              another("spec.schedule"));
  EXPECT_THAT(with([](auto& plan) { plan.mutable_spec()->set_batch_size(17); }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("spec.batch_size: 16 -> 17")));
  EXPECT_THAT(with([](auto& plan) { plan.mutable_network()->set_mean(1); }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("network.mean")));
  EXPECT_THAT(with([](auto& plan) { plan.mutable_dataset()->set_fingerprint("another"); }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another dataset")));
  EXPECT_THAT(with([](auto& plan) { plan.set_total_steps(2); }),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("epoch 1 already")));
}

TEST(CheckpointManifestTest, EpochsMayBeAddedUnlessTheLearningRateIsLaidOutOverThem) {
  for (const auto kind : {v1::LearningRateSchedule::KIND_STEP, v1::LearningRateSchedule::KIND_COSINE}) {
    CheckpointManifest saved = Sample();
    v1::LearningRateSchedule& schedule = *saved.plan.mutable_spec()->mutable_schedule();
    schedule.set_kind(kind);
    const bool fixed = kind == v1::LearningRateSchedule::KIND_STEP;
    if (fixed) schedule.set_steps(2);
    EXPECT_THAT(CheckSameJob(saved, saved.plan), IsOk());
    v1::JobPlan longer = saved.plan;
    longer.mutable_spec()->set_epochs(7);
    longer.set_total_steps(21);
    if (fixed) {
      EXPECT_THAT(CheckSameJob(saved, longer), IsOk());
    } else {
      EXPECT_THAT(CheckSameJob(saved, longer),
                  StatusIs(absl::StatusCode::kFailedPrecondition,
                           HasSubstr("KIND_COSINE, was laid out over 2 epochs, so that epochs 7 would")));
    }
  }
}

TEST(CheckpointManifestTest, TheOptimizersDigestCoversStepNamesAndValues) {
  const OptimizerState state{.step = 3, .tensors = {{"exp_avg", std::vector<float>{1, 2}}}};
  const std::string digest = OptimizerSha256(state);
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest, OptimizerSha256(state));
  EXPECT_NE(digest, OptimizerSha256({.step = 4, .tensors = {{"exp_avg", std::vector<float>{1, 2}}}}));
  EXPECT_NE(digest, OptimizerSha256({.step = 3, .tensors = {{"exp_avh", std::vector<float>{1, 2}}}}));
  EXPECT_NE(digest, OptimizerSha256({.step = 3, .tensors = {{"exp_avg", std::vector<float>{1, 3}}}}));
}

}  // namespace
}  // namespace millrace
