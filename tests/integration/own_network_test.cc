// A user's own network, as a file, from `millrace train` to what is served; and one that is smaller than its shards.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/model/scripts.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

class OwnNetworkTest : public testing::Test {
 protected:
  // 170 parameters: two blocks of 64 elements, which no shard can share, and 42 more.
  OwnNetworkTest() {
    WriteIdxDataset(temporary_ / "data");
    LinearScript(16, 10, "torch.adaptive_avg_pool2d(x, [4, 4]).flatten(1)").save(temporary_ / "net.pt");
  }

  ClusterProcess Start(const std::string& name, Flags flags) {
    const Flags job = {"--model", temporary_ / "net.pt", "--epochs", "3", "--batch-size",
                       "64",      "--learning-rate",     "0.1"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, temporary_ / "data", flags);
  }

  const TemporaryDirectory temporary_;
};

TEST_F(OwnNetworkTest, IsTrainedAndServedByAnyCluster) {
  const nlohmann::json one = Finish(Start("one", {"--workers", "1"}));
  EXPECT_GT(one["test_accuracy"], 0.9);
  EXPECT_EQ(one["served"]["accuracy"], one["test_accuracy"]);
  EXPECT_EQ(one["served"]["version"], one["steps"]);
  const nlohmann::json three = Finish(Start("three", {"--workers", "2", "--shards", "3", "--no-serving"}));
  EXPECT_EQ(three["weights_sha256"], one["weights_sha256"]);
}

// A shard that holds nothing has nothing to apply, and could hold up the rest: there is none.
TEST_F(OwnNetworkTest, WithMoreShardsThanBlocksIsRefusedAtOnce) {
  ClusterProcess run = Start("run", {"--shards", "4", "--no-serving"});
  EXPECT_EQ(run.Wait(), 78);
  const std::string errors = run.program().Errors();
  EXPECT_THAT(errors, HasSubstr("4 shards"));
  EXPECT_THAT(errors, HasSubstr("170"));
}

}  // namespace
}  // namespace millrace
