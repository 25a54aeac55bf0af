// Other datasets than MNIST's, from `millrace train` to the test's accuracy.
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/cli/output_directory.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

class DatasetsTest : public testing::Test {
 protected:
  ClusterProcess Start(const std::string& name, const std::filesystem::path& data_dir, Flags flags) {
    const Flags job = {"--batch-size", "64", "--seed", "3", "--workers", "2", "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, data_dir, flags);
  }

  TemporaryDirectory temporary_;
};

TEST_F(DatasetsTest, DrawnDigitsAreLearntWithoutFiles) {
  const nlohmann::json result = Finish(Start("drawn", "synthetic:train=4000,test=500,seed=5", {"--epochs", "4"}));
  EXPECT_GT(result["test_accuracy"], 0.9);
}

// Three channels and another size: nothing in between may take images to be MNIST's.
TEST_F(DatasetsTest, CifarRecords) {
  const std::filesystem::path directory = temporary_ / "cifar";
  std::filesystem::create_directories(directory);
  const auto write = [&](const std::string& name, uint32_t first, uint32_t count) {
    std::ofstream file(directory / name, std::ios::binary);
    for (uint32_t i = first; i < first + count; ++i) {
      const uint32_t label = i % 10;
      std::string record(1 + 3072, '\0');
      record[0] = static_cast<char>(label);
      // A bright bar, whose place and colour tell the class, in noise.
      for (uint32_t pixel = 0; pixel < 3072; ++pixel) {
        const uint32_t channel = pixel / 1024, row = pixel % 1024 / 32;
        const bool bright = channel == label % 3 && row / 3 == label;
        record[1 + pixel] = static_cast<char>(bright ? 220 : (i * 2654435761u + pixel * 40503u) >> 13 & 63);
      }
      file << record;
    }
  };
  for (uint32_t batch = 0; batch < 5; ++batch)
    write("data_batch_" + std::to_string(batch + 1) + ".bin", 200 * batch, 200);
  write("test_batch.bin", 5000, 100);
  const nlohmann::json result = Finish(Start("cifar-run", directory, {"--epochs", "3"}));
  EXPECT_GT(result["test_accuracy"], 0.9);
}

// What the data service was told to take out belongs to the dataset: a resumed run without the flag must not meet
// another fingerprint.
TEST_F(DatasetsTest, ResumedRunKeepsTheDataFlags) {
  const std::filesystem::path directory = temporary_ / "data";
  WriteIdxDataset(directory);
  {
    std::fstream images(directory / "train-images-idx3-ubyte", std::ios::binary | std::ios::in | std::ios::out);
    images.seekp(16 + 784 * 30);
    images << std::string(784, '\0');
  }
  Finish(Start("run", directory, {"--epochs", "1", "--clean", "drop"}));
  const auto record = ReadClusterRecord(temporary_ / "run");
  ASSERT_THAT(record, IsOk());
  EXPECT_THAT(record->data_flags, ElementsAre("--clean", "drop"));
  ClusterProcess resumed(temporary_ / "run", directory, {"--resume", "--epochs", "2", "--no-serving"});
  EXPECT_EQ(resumed.Wait(), 0) << resumed.program().Errors();
  EXPECT_THAT(resumed.program().Errors(), HasSubstr("1,599 samples"));
}

TEST_F(DatasetsTest, RefusesWhatItWasToldToRefuse) {
  const std::filesystem::path directory = temporary_ / "data";
  WriteIdxDataset(directory);
  {
    std::fstream images(directory / "train-images-idx3-ubyte", std::ios::binary | std::ios::in | std::ios::out);
    images.seekp(16 + 784 * 30);
    images << std::string(784, '\0');
  }
  ClusterProcess run = Start("run", directory, {"--epochs", "1", "--clean", "constant=refuse"});
  EXPECT_EQ(run.Wait(), 78) << run.program().Errors();
  EXPECT_THAT(run.program().Errors(), HasSubstr("train sample 30 is 0 everywhere"));
}

}  // namespace
}  // namespace millrace
