#include "services/data/cifar.h"

#include <string>

#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/data/dataset.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

// Pixel i of record r is a function of both.
std::string Record(uint8_t label, uint32_t record) {
  std::string bytes(1, static_cast<char>(label));
  for (uint32_t i = 0; i < 3072; ++i) bytes.push_back(static_cast<char>(i * 7 + record * 13 + i / 1024));
  return bytes;
}

class CifarTest : public testing::Test {
 protected:
  // 20 records in five train files, 10 in the test file.
  CifarTest() {
    for (uint32_t batch = 0; batch < 5; ++batch) {
      std::string bytes;
      for (uint32_t i = 0; i < 4; ++i) bytes += Record((batch * 4 + i) % 10, batch * 4 + i);
      WriteBytes(directory_ / ("data_batch_" + std::to_string(batch + 1) + ".bin"), bytes);
      all_ += bytes;
    }
    std::string bytes;
    for (uint32_t i = 0; i < 10; ++i) bytes += Record(i, 100 + i);
    WriteBytes(directory_ / "test_batch.bin", bytes);
    all_ += bytes;
  }

  absl::StatusOr<std::shared_ptr<const Dataset>> Load() {
    const absl::StatusOr<DatasetSource> source = FindDataset(directory_.path().string());
    if (!source.ok()) return source.status();
    return Dataset::Load(*source, {});
  }

  const TemporaryDirectory directory_;
  std::string all_;  // bytes of all files in order
};

TEST_F(CifarTest, ReadsAllBatchesInOrder) {
  const auto dataset = Load();
  ASSERT_THAT(dataset, IsOk());
  EXPECT_EQ((*dataset)->train().count(), 20);
  EXPECT_EQ((*dataset)->test().count(), 10);
  EXPECT_EQ((*dataset)->train().shape(), (ImageShape{3, 32, 32}));
  EXPECT_EQ((*dataset)->classes(), 10);
  for (const uint32_t sample : {0u, 7u, 19u}) {
    EXPECT_EQ((*dataset)->train().label(sample), sample % 10);
    const auto image = (*dataset)->train().image(sample);
    EXPECT_EQ(std::string(image.begin(), image.end()), Record(0, sample).substr(1));
  }
  EXPECT_EQ((*dataset)->fingerprint(), Sha256Hex(all_));
}

TEST_F(CifarTest, NamesWhatIsWrong) {
  WriteBytes(directory_ / "data_batch_3.bin", Record(1, 1) + "x");
  EXPECT_THAT(Load(), StatusIs(kDataLoss, AllOf(HasSubstr("data_batch_3.bin"), HasSubstr("3074 bytes"))));
  WriteBytes(directory_ / "data_batch_3.bin", Gzip(Record(1, 1)));
  EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("compressed")));
  WriteBytes(directory_ / "data_batch_3.bin", "");
  EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("empty")));
  WriteBytes(directory_ / "data_batch_3.bin", Record(1, 1) + Record(10, 2));
  EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("label 10 of record 1")));
  std::filesystem::remove(directory_ / "data_batch_3.bin");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no data_batch_3.bin")));
}

}  // namespace
}  // namespace millrace
