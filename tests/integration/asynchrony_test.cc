// Stale gradients on real processes: with bounded staleness the bits are the same for every cluster, without a bound
// the network learns all the same.
#include <signal.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

class AsynchronyTest : public testing::Test {
 protected:
  AsynchronyTest() { WriteIdxDataset(data_dir_); }

  ClusterProcess Start(const std::string& name, Flags flags) {
    const Flags job = {"--epochs", "6", "--batch-size", "64", "--seed", "3", "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, data_dir_, flags);
  }

  TemporaryDirectory temporary_;
  const std::filesystem::path data_dir_ = temporary_ / "data";
};

TEST_F(AsynchronyTest, BoundedStalenessIsAsReproducibleAsNone) {
  const Flags stale = {"--staleness", "2", "--stale-gradients", "compensated"};
  const auto with = [&](Flags flags) {
    flags.insert(flags.end(), stale.begin(), stale.end());
    return flags;
  };
  const nlohmann::json reference = Finish(Start("reference", with({"--workers", "1"})));
  EXPECT_GT(reference["test_accuracy"], 0.9);
  EXPECT_EQ(Finish(Start("three", with({"--workers", "3", "--shards", "2"})))["weights_sha256"],
            reference["weights_sha256"]);
  EXPECT_NE(Finish(Start("exact", {"--workers", "2"}))["weights_sha256"], reference["weights_sha256"])
      << "nothing was stale";

  ClusterProcess killed = Start("killed", with({"--workers", "2"}));
  killed.WaitUntil([](const v1::JobStatus& status) { return status.version() >= 30; });
  kill(killed.program().Children("millrace-worker").at(0), SIGKILL);
  EXPECT_EQ(Finish(std::move(killed))["weights_sha256"], reference["weights_sha256"]);
}

TEST_F(AsynchronyTest, UnboundedStalenessLearnsToo) {
  const nlohmann::json result = Finish(Start("unbounded", {"--workers", "3", "--staleness", "unbounded"}));
  EXPECT_EQ(result["steps"], 138);
  EXPECT_GT(result["test_accuracy"], 0.9);
}

}  // namespace
}  // namespace millrace
