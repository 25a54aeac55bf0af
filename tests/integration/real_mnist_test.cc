// What the README promises of real MNIST: the default job, as a person runs it, from the files to the answers served.
#include <cstdlib>
#include <filesystem>

#include "common/hashing.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster_process.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

constexpr double kTestAccuracyMin = 0.982;
constexpr double kOneImage = 1.0 / 10'000;  // of the test split

// The published file; who has it has the others. TensorFlow Datasets pins the same digest.
constexpr char kTrainImages[] = "train-images-idx3-ubyte.gz";
constexpr char kTrainImagesSha256[] = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609";

TEST(RealMnistTest, TheDefaultJobReachesItsAccuracyAndServesIt) {
  const char* const directory = std::getenv("MILLRACE_DATA_DIR");
  if (directory == nullptr) GTEST_SKIP() << "NO REAL MNIST: MILLRACE_DATA_DIR is not set";
  const std::filesystem::path images = std::filesystem::path(directory) / kTrainImages;
  const absl::StatusOr<std::string> digest = Sha256File(images);
  if (!digest.ok()) GTEST_SKIP() << "NO REAL MNIST in MILLRACE_DATA_DIR: " << digest.status();
  if (*digest != kTrainImagesSha256) GTEST_SKIP() << "NO REAL MNIST in MILLRACE_DATA_DIR: " << images << " is not it";

  TemporaryDirectory temporary;
  ClusterProcess run(temporary / "mnist", directory, {"--epochs", "10"});
  ASSERT_EQ(run.program().Wait(absl::Minutes(14)), 0) << run.program().Errors();
  const nlohmann::json result = run.Result();
  EXPECT_EQ(result["dataset"], "mnist");
  EXPECT_EQ(result["epochs"], 10);
  EXPECT_GE(result["test_accuracy"], kTestAccuracyMin);
  EXPECT_EQ(result["served"]["requests"], 10'000);
  EXPECT_EQ(result["served"]["version"], result["steps"]);
  // The trained network and the served one classify alike.
  EXPECT_NEAR(result["served"]["accuracy"], result["test_accuracy"], kOneImage / 2);
}

}  // namespace
}  // namespace millrace
