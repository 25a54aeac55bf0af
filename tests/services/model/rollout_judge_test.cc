#include "services/model/rollout_judge.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Reason = RolloutVerdict::Reason;

constexpr RolloutLimits kLimits = {
    .rows = 1000, .agreement_min = 0.9, .confidence_shift_max = 0.1, .latency_ratio_max = 2};

Comparison Rows(uint64_t rows, uint64_t agree) {
  return {.rows = rows,
          .agree = agree,
          .stable_confidence = 0.8 * static_cast<double>(rows),
          .candidate_confidence = 0.8 * static_cast<double>(rows),
          .stable_time = absl::Milliseconds(1),
          .candidate_time = absl::Milliseconds(1)};
}

TEST(RolloutJudgeTest, PromotesAfterTheRowsAndNotBefore) {
  RolloutJudge judge(kLimits);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(judge.Add(Rows(100, 95)), std::nullopt);
  EXPECT_EQ(judge.Add(Rows(99, 95)), std::nullopt);
  const auto verdict = judge.Add(Rows(1, 1));
  ASSERT_TRUE(verdict.has_value());
  EXPECT_TRUE(verdict->promoted());
  EXPECT_EQ(verdict->text, "95.10 % of 1000 rows agree, confidence moved by +0.0000, 1.00 times the latency");
}

TEST(RolloutJudgeTest, ExactlyTheLimitsAreKept) {
  Comparison limit = Rows(1000, 900);
  limit.candidate_confidence = 700.001;
  limit.candidate_time = absl::Milliseconds(2);
  EXPECT_TRUE(RolloutJudge(kLimits).Add(limit)->promoted());
}

TEST(RolloutJudgeTest, RollsBackAtTheFirstRowOnWhichOnlyTheCandidateFails) {
  RolloutJudge judge(kLimits);
  judge.Add(Rows(10, 10));
  EXPECT_EQ(judge.Add({.failed = 1})->reason, Reason::kErrors);
  EXPECT_THAT(judge.verdict()->text, StartsWith("errors: it failed on 1 rows"));
}

TEST(RolloutJudgeTest, RollsBackAsSoonAsTheAgreementCannotBeReached) {
  RolloutJudge judge(kLimits);
  EXPECT_EQ(judge.Add(Rows(100, 0)), std::nullopt);  // the other 900 may agree
  const auto verdict = judge.Add(Rows(1, 0));
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->reason, Reason::kAgreement);
  EXPECT_EQ(verdict->text, "agreement: 0 of 101 rows have the stable version's answer; of 1000 at least 90.00 % must");
}

TEST(RolloutJudgeTest, RollsBackForAShiftOfConfidenceUpOrDown) {
  for (const double confidence : {695.0, 905.0}) {
    Comparison shifted = Rows(1000, 1000);
    shifted.candidate_confidence = confidence;
    const auto verdict = RolloutJudge(kLimits).Add(shifted);
    EXPECT_EQ(verdict->reason, Reason::kConfidence) << confidence;
    EXPECT_THAT(verdict->text, HasSubstr(confidence < 800 ? "moved by -0.1050" : "moved by +0.1050"));
  }
}

TEST(RolloutJudgeTest, RollsBackWhatTakesTooLong) {
  Comparison slow = Rows(1000, 1000);
  slow.candidate_time = absl::Microseconds(2010);
  EXPECT_EQ(RolloutJudge(kLimits).Add(slow)->text,
            "latency: 2.01 times the stable version's over 1000 rows; the limit is 2.00");
}

TEST(RolloutJudgeTest, AVerdictIsFinal) {
  RolloutJudge judge(kLimits);
  judge.Add(Rows(1000, 1000));
  EXPECT_TRUE(judge.Add({.failed = 5})->promoted());
  EXPECT_EQ(judge.total().failed, 0u);
}

TEST(RolloutJudgeTest, LimitsOutOfRangeAreRefusedByName) {
  EXPECT_THAT(CheckLimits(kLimits), IsOk());
  const auto refused = [](auto change, const char* flag) {
    RolloutLimits limits = kLimits;
    change(limits);
    EXPECT_THAT(CheckLimits(limits), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(flag)));
  };
  refused([](RolloutLimits& limits) { limits.rows = 0; }, "--rollout-rows");
  refused([](RolloutLimits& limits) { limits.agreement_min = 1.1; }, "--rollout-min-agreement");
  refused([](RolloutLimits& limits) { limits.confidence_shift_max = -1; }, "--rollout-max-confidence-shift");
  refused([](RolloutLimits& limits) { limits.latency_ratio_max = 0; }, "--rollout-max-latency-ratio");
}

TEST(CompareTest, CountsTheClassifiersRowsThatAgreeAndTheirConfidence) {
  const ModelInfo info = FakeInfo("mnist", 1);                // four classes
  const RowAnswers stable{.values = {0.7f, 0.1f, 0.1f, 0.1f,  //
                                     0.25f, 0.5f, 0.25f, 0,   //
                                     0, 0, 1, 0,              //
                                     0, 0, 0, 1},
                          .faults = {{.row = 3, .status = absl::InternalError("too")}}};
  const RowAnswers candidate{
      .values = {0.5f, 0.2f, 0.2f, 0.1f,  //
                 0.75f, 0.25f, 0, 0,      //
                 0, 0, 0, 0,              //
                 0, 0, 0, 0},
      .faults = {{.row = 2, .status = absl::InternalError("no")}, {.row = 3, .status = absl::InternalError("no")}}};
  const Comparison comparison = Compare(info, stable, candidate);
  EXPECT_EQ(comparison.rows, 2u);
  EXPECT_EQ(comparison.agree, 1u);
  EXPECT_EQ(comparison.failed, 1u);  // row 2: the stable version failed on row 3 too
  EXPECT_NEAR(comparison.stable_confidence, 1.2, 1e-6);
  EXPECT_NEAR(comparison.candidate_confidence, 1.25, 1e-6);
}

TEST(CompareTest, AnAutoencodersRowsAgreeUnlessTheErrorGrows) {
  ModelInfo info = FakeInfo("mnist", 1);
  info.classes = 0;
  info.input = {.channels = 1, .height = 1, .width = 1};
  const Comparison comparison = Compare(info, {.values = {0, 0.1f, 0, 0.1f, 0, 0.1f}, .faults = {}},
                                        {.values = {1, 0.01f, 1, 0.105f, 1, 0.12f}, .faults = {}});
  EXPECT_EQ(comparison.rows, 3u);
  EXPECT_EQ(comparison.agree, 2u);
  EXPECT_EQ(comparison.confidence_shift(), 0);
}

}  // namespace
}  // namespace millrace
