#include "services/model/row_runner.h"

#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

constexpr uint8_t kThrows = 200, kNan = 201;

// A row's answer is its first pixel. A batch with kThrows in it fails; of one with kNan, all rows come out as NaN.
class PoisonablePredictor : public Predictor {
 public:
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const override {
    return PredictAny(images, rows);
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float> images, size_t rows) const override {
    return PredictAny(images, rows);
  }
  absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t>, size_t,
                                                   const ExplainOptions&) const override {
    return absl::UnimplementedError("explaining");
  }
  mutable std::vector<size_t> sizes;

 private:
  template <typename Pixel>
  absl::StatusOr<std::vector<float>> PredictAny(std::span<const Pixel> images, size_t rows) const {
    sizes.push_back(rows);
    std::vector<float> values;
    bool nan = false;
    for (size_t row = 0; row < rows; ++row) {
      const Pixel pixel = images[row * info_.input.bytes()];
      if (pixel == kThrows) return absl::InternalError("predicting: poison");
      nan |= pixel == kNan;
      values.insert(values.end(), info_.classes, pixel);
    }
    if (nan) values.assign(values.size(), std::numeric_limits<float>::quiet_NaN());
    return values;
  }

  const ModelInfo info_ = FakeInfo("mnist", 1);
};

std::vector<uint8_t> PixelsOf(const std::vector<uint8_t>& first) {
  std::vector<uint8_t> pixels(first.size() * kFakeShape.bytes());
  for (size_t row = 0; row < first.size(); ++row) pixels[row * kFakeShape.bytes()] = first[row];
  return pixels;
}

TEST(RowRunner, OneForwardPassIfAllIsWell) {
  const PoisonablePredictor predictor;
  const RowAnswers answers = RunRows(predictor, PixelsOf({1, 2, 3}), 3, false);
  EXPECT_TRUE(answers.faults.empty());
  EXPECT_EQ(answers.values[2 * kFakeClasses], 3);
  EXPECT_THAT(predictor.sizes, ::testing::ElementsAre(3));
}

TEST(RowRunner, FloatsAreCutIntoRowsAsBytesAre) {
  const PoisonablePredictor predictor;
  std::vector<float> pixels(3 * kFakeShape.bytes());
  pixels[0] = 0.5f;
  pixels[kFakeShape.bytes()] = kThrows;
  pixels[2 * kFakeShape.bytes()] = 2.5f;
  const RowAnswers answers = RunRows(predictor, pixels, 3, false);
  ASSERT_EQ(answers.faults.size(), 1u);
  EXPECT_EQ(answers.faults[0].row, 1u);
  EXPECT_EQ(answers.values[0], 0.5f);
  EXPECT_EQ(answers.values[2 * kFakeClasses], 2.5f);
}

TEST(RowRunner, AloneMeansAlone) {
  const PoisonablePredictor predictor;
  const RowAnswers answers = RunRows(predictor, PixelsOf({1, 2, 3}), 3, true);
  EXPECT_EQ(answers.values[2 * kFakeClasses], 3);
  EXPECT_THAT(predictor.sizes, ::testing::ElementsAre(1, 1, 1));
}

RC_GTEST_PROP(RowRunner, OnlyTheGuiltyRowsFail, ()) {
  const auto first = *rc::gen::nonEmpty(rc::gen::container<std::vector<uint8_t>>(rc::gen::weightedOneOf<uint8_t>(
      {{8, rc::gen::inRange<uint8_t>(0, 100)}, {1, rc::gen::just(kThrows)}, {1, rc::gen::just(kNan)}})));
  const PoisonablePredictor predictor;
  const RowAnswers answers =
      RunRows(predictor, PixelsOf(first), static_cast<uint32_t>(first.size()), *rc::gen::arbitrary<bool>());
  RC_ASSERT(answers.values.size() == first.size() * kFakeClasses);
  std::set<uint32_t> guilty;
  for (const RowFault& fault : answers.faults) {
    RC_ASSERT(absl::IsInternal(fault.status));
    RC_ASSERT((guilty.empty() || *guilty.rbegin() < fault.row));
    guilty.insert(fault.row);
  }
  for (uint32_t row = 0; row < first.size(); ++row) {
    RC_ASSERT(guilty.contains(row) == (first[row] >= kThrows));
    if (first[row] < kThrows) RC_ASSERT(answers.values[row * kFakeClasses] == first[row]);
  }
}

}  // namespace
}  // namespace millrace
