#include "services/data/dataset.h"

#include <cmath>
#include <filesystem>
#include <string>

#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

absl::StatusOr<std::shared_ptr<const Dataset>> LoadFrom(const std::filesystem::path& directory, uint32_t classes = 0) {
  const absl::StatusOr<DatasetFiles> files = FindDatasetFiles(directory);
  if (!files.ok()) return files.status();
  return Dataset::Load(*files, {.classes = classes});
}

class DatasetTest : public testing::Test {
 protected:
  DatasetTest() { tiny_.Write(directory_.path()); }

  void Replace(const std::string& name, const std::string& bytes) { WriteBytes(directory_ / name, bytes); }

  const TinyDataset tiny_;
  const TemporaryDirectory directory_;
};

TEST_F(DatasetTest, LoadsAllFourFiles) {
  const auto dataset = LoadFrom(directory_.path());
  ASSERT_THAT(dataset, IsOk());
  EXPECT_EQ((*dataset)->train().count(), 100);
  EXPECT_EQ((*dataset)->test().count(), 20);
  EXPECT_EQ((*dataset)->train().shape(), (ImageShape{1, 4, 4}));
  EXPECT_EQ((*dataset)->classes(), 10);
  EXPECT_THAT((*dataset)->train_class_counts(), Each(10));
  EXPECT_EQ((*dataset)->train().image(37)[0], 37);
  EXPECT_EQ((*dataset)->train().label(37), 7);
  EXPECT_EQ((*dataset)->test().image(5)[2], 1);
}

TEST_F(DatasetTest, FingerprintIsTheDigestOfTheFilesUncompressed) {
  const std::string expected =
      Sha256Hex(tiny_.Images(100, 0) + tiny_.Labels(100) + tiny_.Images(20, 1) + tiny_.Labels(20));
  EXPECT_EQ((*LoadFrom(directory_.path()))->fingerprint(), expected);

  std::filesystem::remove(directory_ / "train-images-idx3-ubyte");
  Replace("train-images-idx3-ubyte.gz", Gzip(tiny_.Images(100, 0)));
  EXPECT_EQ((*LoadFrom(directory_.path()))->fingerprint(), expected);
}

TEST_F(DatasetTest, IsCalledAsItsDirectory) {
  const std::string name = directory_.path().filename().string();
  EXPECT_EQ((*LoadFrom(directory_.path()))->name(), name);
  EXPECT_EQ((*LoadFrom(directory_.path().string() + "/"))->name(), name);
  EXPECT_EQ((*LoadFrom(directory_.path() / "."))->name(), name);
}

TEST_F(DatasetTest, FindsBothStylesOfNames) {
  for (const auto& [style, other] : {std::pair("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
                                     std::pair("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte")}) {
    std::filesystem::rename(directory_ / style, directory_ / other);
    EXPECT_THAT(LoadFrom(directory_.path()), IsOk());
    std::filesystem::rename(directory_ / other, (directory_ / other) += ".gz");
    EXPECT_THAT(LoadFrom(directory_.path()), IsOk());
  }
}

TEST_F(DatasetTest, MissingFileAndDirectory) {
  std::filesystem::remove(directory_ / "t10k-labels-idx1-ubyte");
  EXPECT_THAT(LoadFrom(directory_.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("has no t10k-labels-idx1-ubyte")));
  EXPECT_THAT(LoadFrom(directory_ / "none"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(LoadFrom(directory_ / "train-labels-idx1-ubyte"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("not a directory")));
}

TEST_F(DatasetTest, ImagesAndLabelsOfDifferentCounts) {
  Replace("train-labels-idx1-ubyte", tiny_.Labels(99));
  EXPECT_THAT(LoadFrom(directory_.path()), StatusIs(kDataLoss, AllOf(HasSubstr("100 images"), HasSubstr("99 labels"))));
}

TEST_F(DatasetTest, TestImagesOfAnotherSize) {
  Replace("t10k-images-idx3-ubyte", TinyDataset{.height = 5}.Images(20, 1));
  EXPECT_THAT(LoadFrom(directory_.path()), StatusIs(kDataLoss, AllOf(HasSubstr("5x4"), HasSubstr("4x4"))));
}

TEST_F(DatasetTest, DamagedTrainLabel) {
  std::string labels = tiny_.Labels(100);
  labels[8 + 50] = 77;
  Replace("train-labels-idx1-ubyte", labels);
  EXPECT_THAT(LoadFrom(directory_.path()), StatusIs(kDataLoss, AllOf(HasSubstr("label 77 of train sample 50"),
                                                                     HasSubstr("over the largest of 10 classes"))));
  EXPECT_THAT(LoadFrom(directory_.path(), 10), StatusIs(kDataLoss, HasSubstr("label 77 of train sample 50")));
  EXPECT_THAT(LoadFrom(directory_.path(), 78), IsOk());
}

TEST_F(DatasetTest, TestLabelThatTrainingNeverSees) {
  std::string labels = tiny_.Labels(20);
  labels[8 + 3] = 10;
  Replace("t10k-labels-idx1-ubyte", labels);
  EXPECT_THAT(LoadFrom(directory_.path()), StatusIs(kDataLoss, HasSubstr("label 10 of test sample 3")));
}

TEST_F(DatasetTest, LabelsMayCountFromOne) {
  std::string labels = tiny_.Labels(100);
  for (size_t i = 8; i < labels.size(); ++i) ++labels[i];
  Replace("train-labels-idx1-ubyte", labels);
  const auto dataset = LoadFrom(directory_.path());
  ASSERT_THAT(dataset, IsOk());
  EXPECT_EQ((*dataset)->classes(), 11);
  EXPECT_THAT((*dataset)->Report(), Not(HasSubstr("count from 1")));  // the test files have a label 0

  Replace("t10k-labels-idx1-ubyte", IdxBytes({20}, std::string(20, '\5')));
  EXPECT_THAT((*LoadFrom(directory_.path()))->Report(), HasSubstr("labels count from 1"));
}

// A fault that the policy takes out must be gone from all: counts, statistics, fingerprint.
TEST_F(DatasetTest, WhatIsTakenOutIsGoneFromTheFingerprint) {
  std::string labels = tiny_.Labels(100);
  labels[8 + 99] = 77;
  Replace("train-labels-idx1-ubyte", labels);
  const DatasetFiles files = FindDatasetFiles(directory_.path()).value();
  const auto dataset = Dataset::Load(files, {.clean = ParseCleanPolicy("labels=drop").value()});
  ASSERT_THAT(dataset, IsOk());
  EXPECT_EQ((*dataset)->train().count(), 99);
  EXPECT_EQ((*dataset)->train_sums()->pixels, 99 * 16);
  EXPECT_EQ((*dataset)->fingerprint(),
            Sha256Hex(tiny_.Images(99, 0) + tiny_.Labels(99) + tiny_.Images(20, 1) + tiny_.Labels(20)));
  EXPECT_THAT((*dataset)->Report(), AllOf(HasSubstr("1 samples taken out"), HasSubstr("label 77 of train sample 99")));
}

TEST_F(DatasetTest, TransposesOnDemandAndEmnistWithout) {
  const TinyDataset wide = {.height = 4, .width = 6};
  wide.Write(directory_.path());
  const auto plain = LoadFrom(directory_.path());
  ASSERT_THAT(plain, IsOk());
  const DatasetFiles files = FindDatasetFiles(directory_.path()).value();
  const auto turned = Dataset::Load(files, {.transpose = Transpose::kYes});
  ASSERT_THAT(turned, IsOk());
  EXPECT_EQ((*turned)->train().shape(), (ImageShape{1, 6, 4}));
  const auto image = (*plain)->train().image(37), other = (*turned)->train().image(37);
  for (size_t y = 0; y < 4; ++y) {
    for (size_t x = 0; x < 6; ++x) EXPECT_EQ(other[x * 4 + y], image[y * 6 + x]);
  }
  EXPECT_NE((*turned)->fingerprint(), (*plain)->fingerprint());

  const TemporaryDirectory emnist;
  WriteBytes(emnist / "emnist-letters-train-images-idx3-ubyte.gz", Gzip(wide.Images(100, 0)));
  WriteBytes(emnist / "emnist-letters-train-labels-idx1-ubyte", wide.Labels(100));
  WriteBytes(emnist / "emnist-letters-test-images-idx3-ubyte", wide.Images(20, 1));
  WriteBytes(emnist / "emnist-letters-test-labels-idx1-ubyte", wide.Labels(20));
  EXPECT_EQ((*LoadFrom(emnist.path()))->fingerprint(), (*turned)->fingerprint());
  const DatasetFiles emnist_files = FindDatasetFiles(emnist.path()).value();
  EXPECT_EQ((*Dataset::Load(emnist_files, {.transpose = Transpose::kNo}))->fingerprint(), (*plain)->fingerprint());
}

TEST_F(DatasetTest, DirectoryOfTwoDatasets) {
  WriteBytes(directory_ / "data_batch_1.bin", "");
  EXPECT_THAT(LoadFrom(directory_.path()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("more than one dataset")));
}

// As many classes and as odd a size as EMNIST's largest part has.
TEST(OtherDatasetsTest, SixtyTwoClasses) {
  const TemporaryDirectory directory;
  TinyDataset{.train_count = 124, .test_count = 62, .height = 5, .width = 9, .classes = 62}.Write(directory.path());
  const auto dataset = LoadFrom(directory.path());
  ASSERT_THAT(dataset, IsOk());
  EXPECT_EQ((*dataset)->classes(), 62);
  EXPECT_THAT((*dataset)->train_class_counts(), Each(2));
  EXPECT_EQ((*dataset)->train().shape(), (ImageShape{1, 5, 9}));
}

TEST_F(DatasetTest, OneClassIsNone) {
  Replace("train-labels-idx1-ubyte", IdxBytes({100}, std::string(100, '\0')));
  Replace("t10k-labels-idx1-ubyte", IdxBytes({20}, std::string(20, '\0')));
  EXPECT_THAT(LoadFrom(directory_.path()), StatusIs(kDataLoss, HasSubstr("every train label is 0")));
}

TEST(PixelSumsTest, MeanAndDeviation) {
  const std::vector<uint8_t> pixels = {0, 255, 0, 255};
  EXPECT_DOUBLE_EQ(SumPixels(pixels).Mean(), 0.5);
  EXPECT_DOUBLE_EQ(SumPixels(pixels).StandardDeviation(), 0.5);
  EXPECT_DOUBLE_EQ(SumPixels(std::vector<uint8_t>(3, 51)).Mean(), 0.2);
  EXPECT_NEAR(SumPixels(std::vector<uint8_t>(3, 51)).StandardDeviation(), 0, 1e-8);
}

TEST(PixelSumsTest, DoNotOverflow) {
  const PixelSums sums = SumPixels(std::vector<uint8_t>(1'000'003, 255));
  EXPECT_EQ(sums.pixels, 1'000'003);
  EXPECT_EQ(sums.sum, 255'000'765);
  EXPECT_EQ(sums.sum_of_squares, 65'025'195'075);
}

// The real files, where they are at hand.
TEST(RealDatasetTest, MnistIsKnown) {
  const char* directory = std::getenv("MILLRACE_DATA_DIR");
  if (directory == nullptr || *directory == '\0') GTEST_SKIP() << "MILLRACE_DATA_DIR is not set";
  const auto dataset = LoadFrom(directory);
  ASSERT_THAT(dataset, IsOk());
  if ((*dataset)->name() == "fashion-mnist") GTEST_SKIP() << "MILLRACE_DATA_DIR holds Fashion-MNIST";
  EXPECT_EQ((*dataset)->name(), "mnist");
  EXPECT_THAT((*dataset)->train_class_counts(),
              testing::ElementsAre(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949));
  EXPECT_NEAR((*dataset)->train_sums()->Mean(), 0.13066, 1e-5);
  EXPECT_NEAR((*dataset)->train_sums()->StandardDeviation(), 0.30811, 1e-5);
}

}  // namespace
}  // namespace millrace
