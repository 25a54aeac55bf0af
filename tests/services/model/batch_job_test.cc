#include "services/model/batch_job.h"

#include <cstdint>
#include <memory>
#include <span>
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
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two values for every row: its first pixel, and how many rows were computed with it. Fails on rows that begin with
// 255, and on every batch that holds one.
class FirstPixels : public Predictor {
 public:
  FirstPixels() { info_.classes = 2; }
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const override {
    std::vector<float> values;
    for (size_t row = 0; row < rows; ++row) {
      const uint8_t first = images[row * info_.input.bytes()];
      if (first == 255) return absl::InternalError("255");
      values.insert(values.end(), {static_cast<float>(first), static_cast<float>(rows)});
    }
    return values;
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float> images, size_t rows) const override {
    std::vector<float> values;
    for (size_t row = 0; row < rows; ++row) {
      values.insert(values.end(), {images[row * info_.input.bytes()], static_cast<float>(rows)});
    }
    return values;
  }

 private:
  ModelInfo info_ = FakeInfo("mnist", 1);
};

class BatchJobTest : public ServingFixture {
 protected:
  // A call for rows that begin with these pixels.
  std::shared_ptr<EngineCall> Call(const std::vector<uint8_t>& firsts) {
    auto& pixels = *inputs_.emplace_back(std::make_unique<std::vector<uint8_t>>(firsts.size() * kFakeShape.bytes()));
    for (size_t row = 0; row < firsts.size(); ++row) pixels[row * kFakeShape.bytes()] = firsts[row];
    auto call = std::make_shared<EngineCall>();
    call->version = version_;
    call->request = {.input = pixels, .rows = static_cast<uint32_t>(firsts.size())};
    call->answer.rows = call->request.rows;
    return call;
  }
  // Of these calls, all rows of each.
  BatchJob Job(const std::vector<std::shared_ptr<EngineCall>>& calls) {
    BatchJob job;
    for (const auto& call : calls) job.parts.push_back({.call = call, .rows = call->request.rows});
    return job;
  }

  const std::shared_ptr<const LoadedVersion> version_ =
      std::make_shared<const LoadedVersion>(std::make_unique<FirstPixels>(), model_metrics_->AddVersion("mnist", 1), 0);

 private:
  std::vector<std::unique_ptr<std::vector<uint8_t>>> inputs_;
};

TEST_F(BatchJobTest, RowsAreComputedTogetherAndGoToTheirCalls) {
  const auto one = Call({7}), two = Call({8, 9});
  BatchJob job = Job({one, two});
  job.Compute(clock_);
  EXPECT_EQ(job.rows, 3u);
  EXPECT_THAT(one->answer.values, ElementsAre(7, 3));
  EXPECT_THAT(two->answer.values, ElementsAre(8, 3, 9, 3));
}

TEST_F(BatchJobTest, APartOfACallIsWrittenWhereItBelongs) {
  const auto call = Call({1, 2, 3, 4});
  call->answer.values.resize(8);
  BatchJob job;
  job.parts.push_back({.call = call, .first_row = 1, .rows = 2});
  job.Compute(clock_);
  EXPECT_THAT(call->answer.values, ElementsAre(0, 0, 2, 2, 3, 2, 0, 0));
}

TEST_F(BatchJobTest, FloatsAreComputedAsFloatsAndDeterministicRowsAlone) {
  const std::vector<float> pixels(2 * kFakeShape.bytes(), 0.5f);
  const auto call = Call({0, 0});
  call->request.kind = InferenceRequest::Kind::kFloats;
  call->request.input = {reinterpret_cast<const uint8_t*>(pixels.data()), pixels.size() * sizeof(float)};
  BatchJob together = Job({call});
  together.Compute(clock_);
  EXPECT_THAT(call->answer.values, ElementsAre(0.5f, 2, 0.5f, 2));
  call->request.deterministic = true;
  BatchJob alone = Job({call});
  alone.Compute(clock_);
  EXPECT_THAT(call->answer.values, ElementsAre(0.5f, 1, 0.5f, 1));
}

TEST_F(BatchJobTest, WhatNobodyWaitsForIsNotComputed) {
  const auto gone = Call({1}), late = Call({2}), wanted = Call({3});
  gone->unwanted = true;
  late->request.deadline = clock_.Now();
  BatchJob job = Job({gone, late, wanted});
  job.Compute(clock_);
  EXPECT_EQ(job.rows, 1u);
  EXPECT_THAT(job.parts[0].fault, StatusIs(StatusCode::kCancelled));
  EXPECT_THAT(job.parts[1].fault, StatusIs(StatusCode::kDeadlineExceeded));
  EXPECT_THAT(wanted->answer.values, ElementsAre(3, 1));
  BatchJob nothing = Job({gone});
  nothing.Compute(clock_);
  EXPECT_EQ(nothing.rows, 0u);
}

TEST_F(BatchJobTest, APictureThatIsNoneAndARowThatFailsSpoilNoOthers) {
  const auto picture = Call({1}), failing = Call({5, 255}), good = Call({6});
  picture->request.kind = InferenceRequest::Kind::kImage;
  BatchJob job = Job({picture, failing, good});
  job.Compute(clock_);
  EXPECT_THAT(job.parts[0].fault, StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(job.parts[1].fault, StatusIs(StatusCode::kInternal, HasSubstr("row 1: 255")));
  EXPECT_THAT(job.parts[2].fault, IsOk());
  EXPECT_EQ(good->answer.values.front(), 6);
}

}  // namespace
}  // namespace millrace
