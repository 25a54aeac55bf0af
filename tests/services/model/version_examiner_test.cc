#include "services/model/version_examiner.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/serving_fixture.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

// A version v of the fakes takes every row for class v % 4.
class VersionExaminerTest : public ServingFixture {
 protected:
  // Of ten images, as many are of class 1 as `ones`, the others of class 2.
  static CanarySet Images(size_t ones, const ImageShape& shape = kFakeShape) {
    std::vector<uint8_t> labels(10, 2);
    std::fill_n(labels.begin(), ones, uint8_t{1});
    return {shape, std::vector<uint8_t>(labels.size() * shape.bytes()), labels};
  }
  VersionExaminer::Result Load(const VersionExaminer& examiner, uint64_t version, const std::string& word = "good") {
    PublishFake(root_.path(), "mnist", version, word);
    return examiner.Load(root_ / "mnist" / std::to_string(version), "mnist", version);
  }
  // What serves, after an examination without fault.
  std::unique_ptr<const LoadedVersion> Live(VersionExaminer::Result examined) {
    EXPECT_THAT(examined.load.status, IsOk());
    const uint64_t version = examined.load.predictor->info().version;
    return std::make_unique<const LoadedVersion>(std::move(examined.load.predictor),
                                                 model_metrics_->AddVersion("mnist", version), 0, examined.score);
  }
};

TEST_F(VersionExaminerTest, AVersionUnderAnothersNameIsRefused) {
  const VersionExaminer examiner({}, FakeLoader());
  const auto result = Load(examiner, 5, "misplaced");
  EXPECT_THAT(result.load.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("model mnist version 6")));
  EXPECT_EQ(result.load.refusal, "misplaced");
  EXPECT_FALSE(result.by_comparison);
}

TEST_F(VersionExaminerTest, FaultsOfTheLoaderAreLeftAsTheyAre) {
  const VersionExaminer examiner({.canary_set = Images(5)}, FakeLoader());
  const auto away = Load(examiner, 5, "away");
  EXPECT_THAT(away.load.status, StatusIs(StatusCode::kUnavailable));
  EXPECT_EQ(away.load.refusal, "");
  EXPECT_EQ(Load(examiner, 5, "bad").load.refusal, "digest");
}

TEST_F(VersionExaminerTest, AWorseVersionIsRefusedBeyondTheMargin) {
  const VersionExaminer examiner({.canary_set = Images(6), .canary_margin = 0.25}, FakeLoader());
  const auto live = Live(Load(examiner, 1));
  EXPECT_DOUBLE_EQ(live->canary_score()->value, 0.6);
  auto fresh = Load(examiner, 2);  // 0.4
  examiner.Compare(*live, fresh);
  EXPECT_THAT(fresh.load.status, IsOk());
  auto worse = Load(examiner, 3);  // 0
  examiner.Compare(*live, worse);
  EXPECT_THAT(worse.load.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("worse accuracy")));
  EXPECT_EQ(worse.load.refusal, "worse");
  EXPECT_TRUE(worse.by_comparison);
}

TEST_F(VersionExaminerTest, AVersionThatFailsOnTheSetDoesNotServe) {
  class Failing : public FakePredictor {
   public:
    using FakePredictor::FakePredictor;
    absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t>, size_t) const override {
      return absl::InternalError("out of order");
    }
  };
  const VersionExaminer examiner({.canary_set = Images(5)}, [](const std::string&) -> LoadResult {
    return {std::make_unique<Failing>(FakeInfo("mnist", 5)), absl::OkStatus(), ""};
  });
  const auto result = Load(examiner, 5);
  EXPECT_THAT(result.load.status, StatusIs(StatusCode::kInternal, HasSubstr("on the canary set: ")));
  EXPECT_EQ(result.score, std::nullopt);
}

TEST_F(VersionExaminerTest, ASetThatDoesNotFitSaysNothing) {
  const ImageShape other{.channels = 3, .height = 2, .width = 3};
  const VersionExaminer examiner({.canary_set = Images(6, other)}, FakeLoader());
  const auto live = Live(Load(examiner, 1));
  EXPECT_EQ(live->canary_score(), std::nullopt);
  auto fresh = Load(examiner, 3);
  examiner.Compare(*live, fresh);
  EXPECT_THAT(fresh.load.status, IsOk());
}

TEST_F(VersionExaminerTest, WhatIsTriedBesideAnotherMustTakeAndGiveTheSame) {
  for (const bool same_signature : {false, true}) {
    const VersionExaminer examiner({.same_signature = same_signature}, FakeLoader());
    const auto live = Live(Load(examiner, 1));
    auto other = Load(examiner, 2, "autoencoder");
    examiner.Compare(*live, other);
    EXPECT_EQ(other.load.status.ok(), !same_signature);
    EXPECT_EQ(other.load.refusal, same_signature ? "incomparable" : "");
    EXPECT_EQ(other.by_comparison, same_signature);
  }
}

}  // namespace
}  // namespace millrace
