#include "services/model/rollout.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/serving_fixture.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class RolloutTest : public ServingFixture {
 protected:
  ~RolloutTest() override {
    blocked_ = false;
    runner_->Stop();
  }

  std::shared_ptr<const LoadedVersion> Make(uint64_t version) {
    return std::make_shared<const LoadedVersion>(std::make_unique<FakePredictor>(FakeInfo("mnist", version),
                                                                                 [this] {
                                                                                   ++forward_passes_;
                                                                                   while (blocked_)
                                                                                     std::this_thread::yield();
                                                                                 }),
                                                 model_metrics_->AddVersion("mnist", version), 0);
  }
  // Of `candidate` beside `stable`.
  std::shared_ptr<Rollout> Begin(const std::shared_ptr<const LoadedVersion>& stable, uint64_t candidate,
                                 const RolloutOptions& options) {
    auto rollout = std::make_shared<Rollout>(Make(candidate), options, runner_, model_metrics_, [this] { ++settled_; });
    stable->SetRollout(rollout);
    return rollout;
  }
  static InferenceRequest Request(const std::vector<uint8_t>& pixels, std::string_view key = "") {
    return {.input = pixels,
            .rows = static_cast<uint32_t>(pixels.size() / kFakeShape.bytes()),
            .any_version = true,
            .key = key};
  }
  uint64_t Answers(const std::shared_ptr<const LoadedVersion>& stable, const InferenceRequest& request) {
    return RouteRequest(stable, request)->info().version;
  }

  const std::vector<uint8_t> pixels_ = std::vector<uint8_t>(kFakeShape.bytes());
  std::atomic<bool> blocked_ = false;
  std::atomic<int> forward_passes_ = 0;
  std::atomic<int> settled_ = 0;
  std::shared_ptr<ShadowRunner> runner_ = std::make_shared<ShadowRunner>();
};

TEST_F(RolloutTest, WithoutOneTheVersionThatWasFoundAnswers) {
  const auto stable = Make(1);
  EXPECT_EQ(RouteRequest(stable, Request(pixels_)), stable);
  Begin(stable, 2, {.mode = RolloutOptions::Mode::kCanary, .canary_fraction = 1});
  EXPECT_EQ(Answers(stable, Request(pixels_)), 2u);
  InferenceRequest exact = Request(pixels_);
  exact.any_version = false;
  EXPECT_EQ(Answers(stable, exact), 1u);
  EXPECT_EQ(Answers(stable, Request({1, 2, 3})), 1u);  // will be refused
  stable->SetRollout(nullptr);
  EXPECT_EQ(Answers(stable, Request(pixels_)), 1u);
}

TEST_F(RolloutTest, AQuestionAboutAnAnswerGoesToWhoGaveItAndIsNotCompared) {
  const auto stable = Make(1);
  blocked_ = true;  // copies would pile up
  Begin(stable, 5, {.mode = RolloutOptions::Mode::kShadow});
  for (size_t i = 0; i < 200; ++i) EXPECT_EQ(AnswererOf(stable, Request(pixels_, absl::StrCat(i))), stable);
  Begin(stable, 5, {.mode = RolloutOptions::Mode::kCanary, .canary_fraction = 0.5});
  std::vector<std::shared_ptr<const LoadedVersion>> asked, answered;
  for (size_t i = 0; i < 200; ++i) asked.push_back(AnswererOf(stable, Request(pixels_, absl::StrCat(i))));
  EXPECT_TRUE(runner_->has_room());
  for (size_t i = 0; i < 200; ++i) answered.push_back(RouteRequest(stable, Request(pixels_, absl::StrCat(i))));
  EXPECT_EQ(asked, answered);
}

TEST_F(RolloutTest, ACanaryAnswersItsFractionOfTheKeysAndAlwaysTheSame) {
  const auto stable = Make(1);
  Begin(stable, 5, {.mode = RolloutOptions::Mode::kCanary, .canary_fraction = 0.2, .limits = {.rows = 1'000'000}});
  int canaries = 0;
  for (int i = 0; i < 5000; ++i) {
    const std::string key = absl::StrCat("client ", i);
    const uint64_t version = Answers(stable, Request(pixels_, key));
    canaries += version == 5 ? 1 : 0;
    EXPECT_EQ(Answers(stable, Request({1, 2, 3, 4, 5, 6}, key)), version) << "whatever the input";
  }
  EXPECT_NEAR(canaries, 1000, 120);  // four standard deviations

  int inputs = 0;
  for (uint32_t i = 0; i < 5000; ++i) {
    const std::vector<uint8_t> pixels = {static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8), 0, 0, 0, 0};
    inputs += Answers(stable, Request(pixels)) == 5 ? 1 : 0;
  }
  EXPECT_NEAR(inputs, 1000, 120);
}

TEST_F(RolloutTest, AnotherCandidateIsTriedByOtherClients) {
  const auto stable = Make(1);
  const RolloutOptions options{.mode = RolloutOptions::Mode::kCanary, .canary_fraction = 0.5};
  std::vector<bool> first, second;
  Begin(stable, 5, options);
  for (int i = 0; i < 100; ++i) first.push_back(Answers(stable, Request(pixels_, absl::StrCat(i))) == 5);
  Begin(stable, 9, options);
  for (int i = 0; i < 100; ++i) second.push_back(Answers(stable, Request(pixels_, absl::StrCat(i))) == 9);
  EXPECT_NE(first, second);
}

TEST_F(RolloutTest, AShadowAnswersNobodyAndIsPromotedAfterTheRows) {
  const auto stable = Make(1);
  const auto rollout =
      Begin(stable, 5, {.mode = RolloutOptions::Mode::kShadow, .limits = {.rows = 6, .latency_ratio_max = 1e9}});
  const std::vector<uint8_t> two_rows(2 * kFakeShape.bytes());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Answers(stable, Request(two_rows)), 1u);
  ASSERT_TRUE(Eventually([&] { return settled_ == 1; }));
  EXPECT_TRUE(rollout->verdict()->promoted());
  EXPECT_THAT(rollout->Progress(), HasSubstr("shadow of the requests: 6 of 6 rows compared, 100.00 % agree"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_rollout_rows_total{model=\"mnist\",result=\"agree\"} 6"));
  const int computed = forward_passes_;
  EXPECT_EQ(Answers(stable, Request(two_rows)), 1u);
  EXPECT_EQ(forward_passes_, computed);  // nothing is copied any more
}

TEST_F(RolloutTest, ACanaryThatAnswersOtherwiseGetsNoMoreRequestsAfterItsVerdict) {
  const auto stable = Make(1);
  const auto rollout =
      Begin(stable, 2, {.mode = RolloutOptions::Mode::kCanary, .canary_fraction = 1, .limits = {.rows = 4}});
  ASSERT_TRUE(Eventually([&] { return Answers(stable, Request(pixels_)) == 1; }));
  EXPECT_EQ(rollout->verdict()->reason, RolloutVerdict::Reason::kAgreement);
  EXPECT_TRUE(Eventually([&] { return settled_ == 1; }));
}

TEST_F(RolloutTest, UnderLoadCopiesAreDroppedAndNothingWaits) {
  blocked_ = true;
  const auto stable = Make(1);
  Begin(stable, 5, {.mode = RolloutOptions::Mode::kShadow});
  EXPECT_EQ(Answers(stable, Request(pixels_)), 1u);
  ASSERT_TRUE(Eventually([&] { return forward_passes_ == 1; }));  // the runner hangs in it
  for (size_t i = 0; i < ShadowRunner::kJobsMax + 10; ++i) EXPECT_EQ(Answers(stable, Request(pixels_)), 1u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_rollout_rows_total{model=\"mnist\",result=\"dropped\"} 10"));
}

TEST_F(RolloutTest, FloatsAreComparedToo) {
  const auto stable = Make(1);
  const auto rollout =
      Begin(stable, 5, {.mode = RolloutOptions::Mode::kShadow, .limits = {.rows = 2, .latency_ratio_max = 1e9}});
  const std::vector<float> floats(2 * kFakeShape.bytes());
  const InferenceRequest request{
      .kind = InferenceRequest::Kind::kFloats,
      .input = {reinterpret_cast<const uint8_t*>(floats.data()), floats.size() * sizeof(float)},
      .rows = 2,
      .any_version = true};
  EXPECT_EQ(Answers(stable, request), 1u);
  EXPECT_TRUE(Eventually([&] { return settled_ == 1; }));
}

TEST_F(RolloutTest, OptionsOutOfRangeAreRefusedByName) {
  EXPECT_THAT(CheckOptions({}), IsOk());
  for (const double fraction : {0.0, -1.0, 1.1}) {
    EXPECT_THAT(CheckOptions({.canary_fraction = fraction}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--canary-fraction")));
  }
  EXPECT_THAT(CheckOptions({.limits = {.rows = 0}}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace millrace
