// Several replicas of the data service: whichever is lost, the job goes on and ends with the same bits.
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/fault_injector.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Flags = std::vector<std::string>;
using Replica = v1::DataReplicaStatus;

class DataReplicasTest : public testing::Test {
 protected:
  DataReplicasTest() { WriteIdxDataset(data_dir_); }

  ClusterProcess Start(const std::string& name, Flags flags) {
    const Flags job = {"--epochs", "20", "--batch-size", "64", "--seed", "3", "--workers", "2", "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, data_dir_, flags);
  }
  // With one replica, in peace. The same for all tests here.
  std::string ReferenceDigest() {
    static const std::string digest = [this] {
      ClusterProcess run = Start("reference", {});
      return Finish(run)["weights_sha256"].get<std::string>();
    }();
    return digest;
  }

  TemporaryDirectory temporary_;
  const std::filesystem::path data_dir_ = temporary_ / "data";
};

// All workers have the replica's batches to compute with.
bool InTheMiddle(const v1::JobStatus& status) {
  return status.version() >= 15 && status.workers_size() == 2 &&
         std::ranges::all_of(status.workers(), [](const auto& worker) { return worker.samples() > 0; });
}

auto ReplicaIs(int replica, Replica::State state) {
  return [=](const v1::JobStatus& status) {
    return status.data_replicas_size() > replica && status.data_replicas(replica).state() == state;
  };
}

TEST_F(DataReplicasTest, OneThatIsKilledForGoodIsGivenUp) {
  const std::string expected = ReferenceDigest();
  ClusterProcess run = Start("run", {"--data-replicas", "2"});
  run.WaitUntil([](const auto& status) { return InTheMiddle(status) && ReplicaIs(1, Replica::STATE_UP)(status); });
  // However often it is started again.
  const auto given_up = [&] {
    if (const auto pid = FindPart(run.program().pid(), "data-1"); pid.has_value()) kill(*pid, SIGKILL);
    return !run.program().Runs() || run.program().Errors().find("is not started again") != std::string::npos;
  };
  ASSERT_TRUE(Eventually(given_up));
  const v1::JobStatus without = run.WaitUntil(ReplicaIs(1, Replica::STATE_DOWN));
  EXPECT_EQ(without.data_replicas(0).state(), Replica::STATE_UP);
  EXPECT_THAT(without.data_replicas(1).address(), HasSubstr("data-1"));
  run.WaitUntil([&](const auto& status) { return status.version() > without.version(); });
  const nlohmann::json result = Finish(run);
  EXPECT_EQ(result["weights_sha256"], expected);
  EXPECT_EQ(result["recoveries"], 0);
  EXPECT_THAT(run.program().Errors(), HasSubstr("data-1 is not started again: others do its work"));
}

TEST_F(DataReplicasTest, OneThatIsStoppedHoldsNobodyUpAndTwoAreWaitedForByName) {
  const std::string expected = ReferenceDigest();
  ClusterProcess run = Start("run", {"--data-replicas", "2"});
  const uint64_t version = run.WaitUntil(InTheMiddle).version();
  const pid_t first = FindPart(run.program().pid(), "data").value();
  const pid_t second = FindPart(run.program().pid(), "data-1").value();
  kill(first, SIGSTOP);
  const absl::Time since = absl::Now();
  std::string longest_wait;
  run.WaitUntil([&](const auto& status) {
    if (status.waiting_for().size() > longest_wait.size()) longest_wait = status.waiting_for();
    return status.version() >= version + 20;
  });
  std::printf("20 steps after SIGSTOP of one of two data services took %.2f s; waited for '%s'\n",
              absl::ToDoubleSeconds(absl::Now() - since), longest_wait.c_str());
  run.WaitUntil(ReplicaIs(0, Replica::STATE_DOWN));
  // Now there is something to wait for, and it has a name.
  kill(second, SIGSTOP);
  const v1::JobStatus waiting = run.WaitUntil(
      [](const auto& status) { return status.waiting_for().find("(none of 2 answers: ") != std::string::npos; });
  std::printf("both stopped: waiting for %s\n", waiting.waiting_for().c_str());
  kill(first, SIGCONT);
  kill(second, SIGCONT);
  run.WaitUntil(ReplicaIs(0, Replica::STATE_UP));
  EXPECT_EQ(Finish(run)["weights_sha256"], expected);
}

// The parameter server by itself, told of data services that somebody else runs.
class ParameterServerDataTest : public testing::Test {
 protected:
  Program& StartData(const std::string& name, const IdxDataset& shape) {
    WriteIdxDataset(temporary_ / name, shape);
    return *services_.emplace_back(std::make_unique<Program>(
        "millrace-data",
        Flags{"--data-dir", temporary_ / name, "--listen", Socket(name), "--http-listen", "127.0.0.1:0"},
        temporary_ / (name + ".stderr")));
  }
  std::string Socket(const std::string& name) const { return "unix:" + (temporary_ / (name + ".socket")).string(); }
  Program StartServer(const std::string& data) {
    const std::string out = temporary_ / "out";
    JobFlags flags;
    flags.validation_count = 5;
    EXPECT_THAT(OutputDirectory::Open(out, "", false)->WriteJob(*MakeJobSpec(flags, nullptr, 20)), IsOk());
    return Program("millrace-ps",
                   {"--job", out + "/job.textproto", "--output", out, "--data", data, "--listen", "127.0.0.1:0",
                    "--http-listen", "127.0.0.1:0"},
                   temporary_ / "server.stderr");
  }

  TemporaryDirectory temporary_;
  std::vector<std::unique_ptr<Program>> services_;
};

TEST_F(ParameterServerDataTest, ReplicasWithDifferentDatasetsAreRefusedByName) {
  for (Program* service : {&StartData("one", {.train_count = 20}), &StartData("two", {.train_count = 30})}) {
    service->WaitForAddresses();
  }
  Program server = StartServer(Socket("one") + "," + Socket("two"));
  EXPECT_EQ(server.Wait(), 78);
  EXPECT_THAT(server.Errors(), AllOf(HasSubstr("the data services have different datasets: "),
                                     HasSubstr(" at " + Socket("one")), HasSubstr(" at " + Socket("two"))));
}

TEST_F(ParameterServerDataTest, AddressesThatCannotBeRightAreBadUsage) {
  Flags many;
  for (int port = 1; port <= 17; ++port) many.push_back(absl::StrCat("h:", port));
  for (const auto& [data, message] : std::vector<std::pair<std::string, std::string>>{
           {"h:1,,h:2", "--data: 'h:1,,h:2' has an empty address"},
           {"h:1,h:2,h:1", "--data: h:1 is named twice"},
           {absl::StrJoin(many, ","), "--data: 17 addresses are over the limit of 16"}}) {
    std::filesystem::remove(temporary_ / "server.stderr");
    Program server = StartServer(data);
    EXPECT_EQ(server.Wait(), 64);
    EXPECT_THAT(server.Errors(), HasSubstr(message));
    EXPECT_EQ(std::ranges::count(server.Errors(), '\n'), 1) << server.Errors();
  }
}

}  // namespace
}  // namespace millrace
