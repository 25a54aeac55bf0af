#include "services/model/explainer.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/engine_fixture.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/eventually.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ExplainerTest : public EngineFixture {
 protected:
  ExplainerTest() { PublishAndLoad(7); }
  ~ExplainerTest() override { blocked_ = false; }

  InferenceRequest Rows(const std::vector<uint8_t>& pixels, uint32_t rows = 1) const {
    return {.input = pixels, .rows = rows, .deadline = clock_.Now() + absl::Minutes(1)};
  }
  Explainer::Ticket Start(const InferenceRequest& request, std::atomic<int>& code) {
    return explainer_.Explain(*table_.Find("", 0), request, {}, [&code](const absl::StatusOr<ExplainAnswer>& answer) {
      code = static_cast<int>(answer.status().code());
    });
  }
  absl::StatusOr<ExplainAnswer> Explain(const InferenceRequest& request, const ExplainOptions& options = {}) {
    absl::StatusOr<ExplainAnswer> result = absl::UnknownError("none");
    std::atomic<bool> answered = false;
    explainer_.Explain(*table_.Find("", 0), request, options, [&](absl::StatusOr<ExplainAnswer> answer) {
      result = std::move(answer);
      answered = true;
    });
    EXPECT_TRUE(Eventually([&] { return answered.load(); }));
    return result;
  }
  // The explainer's thread stands in a forward pass.
  void Block(std::atomic<int>& code) {
    blocked_ = true;
    const int before = forward_passes_;
    Start(Rows(first_), code);
    ASSERT_TRUE(Eventually([&] { return forward_passes_ > before; }));
  }

  static long Count(const std::vector<std::atomic<int>>& codes, int code) {
    return std::count_if(codes.begin(), codes.end(), [code](const std::atomic<int>& each) { return each == code; });
  }

  static constexpr int kNone = -1;
  const std::vector<uint8_t> first_{1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> second_{6, 5, 4, 3, 2, 1};
  FakeClock clock_;
  Explainer explainer_{metrics_, clock_};
};

TEST_F(ExplainerTest, ExplainsRowsAndShowsWhatTheModelSaw) {
  std::vector<uint8_t> both = first_;
  both.insert(both.end(), second_.begin(), second_.end());
  const auto answer = Explain(Rows(both, 2));
  ASSERT_THAT(answer, IsOk());
  ASSERT_EQ(answer->explanations.size(), 2u);
  EXPECT_THAT(answer->explanations[1].map, ElementsAre(6, 5, 4, 3, 2, 1));
  EXPECT_EQ(answer->images, both);
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_explanations_total{result=\"OK\"} 1"));
}

TEST_F(ExplainerTest, APictureIsPreparedAsForAPrediction) {
  const std::vector<uint8_t> grey(2 * 3, 9);
  const Bytes png = EncodePng(3, 2, PNG_FORMAT_GRAY, grey.data());
  InferenceRequest request = Rows(png);
  request.kind = InferenceRequest::Kind::kImage;
  const auto answer = Explain(request);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->images, grey);
}

TEST_F(ExplainerTest, TheSameQuestionAboutTheSameVersionIsComputedOnce) {
  ASSERT_THAT(Explain(Rows(first_)), IsOk());
  const int before = forward_passes_;
  const auto again = Explain(Rows(first_));
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->cached);
  EXPECT_EQ(forward_passes_, before);
  EXPECT_FALSE(Explain(Rows(second_))->cached);
  EXPECT_FALSE(Explain(Rows(first_), {.method = ExplainMethod::kSaliency})->cached);
  EXPECT_FALSE(Explain(Rows(first_), {.target = 0})->cached);
  EXPECT_FALSE(Explain(Rows(first_), {.steps = 3})->cached);
  EXPECT_FALSE(Explain(Rows(first_), {.patch = 3})->cached);
  PublishAndLoad(8);
  const auto newer = Explain(Rows(first_));
  EXPECT_FALSE(newer->cached);
  EXPECT_EQ(newer->explanations.front().score, 8);
}

TEST_F(ExplainerTest, BadInputIsNamed) {
  EXPECT_THAT(Explain(Rows({1, 2, 3})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("takes 6 bytes per row; 1 rows came with 3")));
  EXPECT_THAT(Explain(Rows(first_, 17)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[1, 16]")));
  InferenceRequest request = Rows(first_);
  request.kind = InferenceRequest::Kind::kImage;
  EXPECT_THAT(Explain(request), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ExplainerTest, WhatNobodyWaitsForIsNotComputed) {
  std::atomic<int> running = kNone, waiting = kNone, late = kNone;
  Block(running);
  const Explainer::Ticket ticket = Start(Rows(second_), waiting);
  InferenceRequest hurried = Rows(second_);
  hurried.deadline = clock_.Now() + absl::Seconds(1);
  Start(hurried, late);
  explainer_.Cancel(ticket);
  EXPECT_EQ(waiting, static_cast<int>(absl::StatusCode::kCancelled)) << "at once";
  clock_.Advance(absl::Seconds(2));
  const int passes = forward_passes_;
  blocked_ = false;
  ASSERT_TRUE(Eventually([&] { return late != kNone; }));
  EXPECT_EQ(late, static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(running, static_cast<int>(absl::StatusCode::kOk));
  EXPECT_EQ(forward_passes_, passes);
}

TEST_F(ExplainerTest, WhatRunsEndsWhenItsClientHasGone) {
  std::atomic<int> running = kNone;
  blocked_ = true;
  const int before = forward_passes_;
  const Explainer::Ticket ticket = Start(Rows(first_), running);
  ASSERT_TRUE(Eventually([&] { return forward_passes_ > before; }));
  explainer_.Cancel(ticket);
  blocked_ = false;
  ASSERT_TRUE(Eventually([&] { return running != kNone; }));
  EXPECT_EQ(running, static_cast<int>(absl::StatusCode::kCancelled));
}

TEST_F(ExplainerTest, TheQueueIsBounded) {
  std::vector<std::atomic<int>> codes(Explainer::kWaitingMax + 2);
  for (std::atomic<int>& code : codes) code = kNone;
  Block(codes[0]);
  for (size_t i = 1; i < codes.size(); ++i) Start(Rows(second_), codes[i]);
  EXPECT_EQ(codes.back(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  blocked_ = false;
  ASSERT_TRUE(Eventually([&] { return Count(codes, kNone) == 0; }));
  EXPECT_EQ(Count(codes, 0), static_cast<long>(Explainer::kWaitingMax + 1));
}

TEST_F(ExplainerTest, AtItsEndWhatWaitsIsToldSo) {
  std::atomic<int> waiting = kNone, running = kNone;
  std::thread unblock;
  {
    Explainer ending(metrics_, clock_);
    blocked_ = true;
    const int before = forward_passes_;
    const auto note = [](std::atomic<int>& code) {
      return [&code](const absl::StatusOr<ExplainAnswer>& answer) { code = static_cast<int>(answer.status().code()); };
    };
    ending.Explain(*table_.Find("", 0), Rows(first_), {}, note(running));
    ASSERT_TRUE(Eventually([&] { return forward_passes_ > before; }));
    ending.Explain(*table_.Find("", 0), Rows(second_), {}, note(waiting));
    unblock = std::thread([&] {
      EXPECT_TRUE(Eventually([&] { return waiting != kNone; }));
      blocked_ = false;
    });
  }
  unblock.join();
  EXPECT_EQ(waiting, static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(running, static_cast<int>(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace millrace
