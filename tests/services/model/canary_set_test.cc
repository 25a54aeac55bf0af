#include "services/model/canary_set.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// Answers with the first pixel of a row, as a class.
class FirstPixel : public Predictor {
 public:
  explicit FirstPixel(ModelInfo info) : info_(std::move(info)) {}
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const override {
    std::vector<float> values(rows * info_.values_per_row());
    for (size_t row = 0; row < rows; ++row) {
      const uint8_t pixel = images[row * info_.input.bytes()];
      if (info_.classes > 0) {
        values[row * info_.classes + pixel] = 1;
      } else {
        values[(row + 1) * info_.values_per_row() - 1] = pixel;
      }
    }
    return values;
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float>, size_t) const override {
    return absl::UnimplementedError("not needed");
  }

 private:
  const ModelInfo info_;
};

// Row r has the first pixel r % 4, and the labels given.
CanarySet MakeSet(const std::vector<uint8_t>& labels) {
  std::vector<uint8_t> pixels(labels.size() * kFakeShape.bytes());
  for (size_t row = 0; row < labels.size(); ++row) pixels[row * kFakeShape.bytes()] = row % 4;
  return CanarySet(kFakeShape, pixels, labels);
}

CanaryScore Accuracy(double value) {
  return {.measure = CanaryScore::Measure::kAccuracy, .value = value, .rows = 1000};
}
CanaryScore Error(double value) { return {.measure = CanaryScore::Measure::kError, .value = value, .rows = 1000}; }

TEST(CanarySetTest, CountsTheRowsOfAClassifierThatAreRightAcrossBatches) {
  std::vector<uint8_t> labels(250);
  for (size_t row = 0; row < labels.size(); ++row) labels[row] = row % 4;
  for (const size_t wrong : {size_t{0}, size_t{99}, size_t{100}, size_t{249}}) labels[wrong] = (labels[wrong] + 1) % 4;
  const auto score = MakeSet(labels).Measure(FirstPixel(FakeInfo("mnist", 1)));
  ASSERT_THAT(score, IsOk());
  ASSERT_TRUE(score->has_value());
  EXPECT_EQ((*score)->measure, CanaryScore::Measure::kAccuracy);
  EXPECT_DOUBLE_EQ((*score)->value, 246.0 / 250);
  EXPECT_EQ((*score)->rows, 250u);
}

TEST(CanarySetTest, TakesTheMeanErrorOfAnAutoencoder) {
  ModelInfo info = FakeInfo("mnist", 1);
  info.classes = 0;
  const auto score = MakeSet({9, 9, 9, 9, 9}).Measure(FirstPixel(info));
  ASSERT_THAT(score, IsOk());
  EXPECT_EQ((*score)->measure, CanaryScore::Measure::kError);
  EXPECT_DOUBLE_EQ((*score)->value, (0 + 1 + 2 + 3 + 0) / 5.0);
}

TEST(CanarySetTest, SaysNothingAboutOtherImagesOrFewerClasses) {
  ModelInfo info = FakeInfo("mnist", 1);
  info.input.width += 1;
  EXPECT_EQ(*MakeSet({0, 1}).Measure(FirstPixel(info)), std::nullopt);
  EXPECT_EQ(*MakeSet({0, 4}).Measure(FirstPixel(FakeInfo("mnist", 1))), std::nullopt);
}

TEST(CanarySetTest, ReadsTheTestImagesOfADirectoryOrAPairOfFilesInBoundedNumber) {
  const TemporaryDirectory root;
  const TinyDataset dataset{.test_count = 1234};
  dataset.Write(root.path());
  for (const std::string& path : {root.path().string(), (root / "t10k").string()}) {
    const auto set = CanarySet::Read(path);
    ASSERT_THAT(set, IsOk());
    EXPECT_EQ(set->rows(), CanarySet::kRowsMax);
  }
  WriteBytes(root / "few-images-idx3-ubyte.gz", Gzip(dataset.Images(7, 1)));
  WriteBytes(root / "few-labels-idx1-ubyte", dataset.Labels(7));
  EXPECT_EQ(CanarySet::Read((root / "few").string())->rows(), 7u);

  WriteBytes(root / "few-labels-idx1-ubyte", dataset.Labels(8));
  EXPECT_THAT(CanarySet::Read((root / "few").string()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("8 labels")));
  EXPECT_THAT(CanarySet::Read((root / "no").string()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no-images-idx3-ubyte")));
}

TEST(CanarySetTest, AVersionMayBeWorseByTheMarginAndNoMore) {
  EXPECT_THAT(CheckNotWorse(Accuracy(0.99), Accuracy(0.5), 7, 0.02), IsOk());
  EXPECT_THAT(CheckNotWorse(Accuracy(0.75), Accuracy(1), 7, 0.25), IsOk());
  EXPECT_THAT(CheckNotWorse(Accuracy(0.912), Accuracy(0.978), 844, 0.02),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       "worse accuracy: 91.20 % of the canary set's 1000 rows, version 844 which serves has 97.80 %; "
                       "the margin is 2.00 %"));
  EXPECT_THAT(CheckNotWorse(Error(0.0101), Error(0.01), 7, 0.02), IsOk());
  EXPECT_THAT(CheckNotWorse(Error(0.0103), Error(0.01), 7, 0.02),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worse error: 0.010300")));
  EXPECT_THAT(CheckNotWorse(Error(9), Accuracy(0.9), 7, 0.02), IsOk());  // another kind of model
}

}  // namespace
}  // namespace millrace
