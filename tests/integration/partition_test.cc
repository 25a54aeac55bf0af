// The network between two parts of a job goes away without a word and comes back: nothing hangs, the wait has a name,
// and the weights are the same bits.
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/integration/tcp_relay.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr absl::Duration kPoll = absl::Milliseconds(10);
constexpr absl::Duration kWaitMax = absl::Minutes(2);
// Longer than keepalive needs to give up a connection.
constexpr absl::Duration kLongCut = absl::Seconds(18);

struct Cut {
  std::string between;
  TcpRelay* (*relay)(class Cluster&);
  absl::Duration time;
  std::string named;  // in what the job waits for; empty if it goes on
};

void PrintTo(const Cut& cut, std::ostream* stream) { *stream << cut.between; }

// Two shards and a worker whose connections all lead through relays.
class Cluster {
 public:
  Cluster(const std::filesystem::path& directory, const std::filesystem::path& data_dir,
          const std::vector<std::string>& shard_flags = {})
      : shard_flags_(shard_flags),
        data_("millrace-data", {"--data-dir", data_dir, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"},
              directory / "data.stderr") {
    to_data.ForwardTo(AddressOf(data_));
    const std::string out = directory / "out";
    JobFlags flags;
    flags.batch_size = 64;
    flags.epochs = 4;
    flags.seed = 3;
    flags.checkpoint_steps = 10;
    EXPECT_THAT(OutputDirectory::Open(out, "", false)->WriteJob(*MakeJobSpec(flags, nullptr, 1600)), IsOk());
    StartShard(first_, directory, 0, {"--job", out + "/job.textproto", "--output", out, "--data", to_data.address()});
    worker_to_coordinator.ForwardTo(AddressOf(*first_));
    shard_to_coordinator.ForwardTo(AddressOf(*first_));
    StartShard(second_, directory, 1,
               {"--coordinator", shard_to_coordinator.address(), "--advertise", to_shard.address()});
    to_shard.ForwardTo(AddressOf(*second_));
    worker_.emplace("millrace-worker",
                    std::vector<std::string>{"--coordinator", worker_to_coordinator.address(), "--name", "worker-0",
                                             "--http-listen", "127.0.0.1:0"},
                    directory / "worker.stderr");
    stub_ = v1::Coordinator::NewStub(MakeChannel(AddressOf(*first_)));
  }

  v1::JobStatus WaitUntil(const std::function<bool(const v1::JobStatus&)>& condition) {
    const absl::Time deadline = absl::Now() + kWaitMax;
    v1::JobStatus status;
    while (absl::Now() < deadline) {
      grpc::ClientContext context;
      SetDeadline(context, absl::Seconds(2));
      if (stub_->GetJobStatus(&context, {}, &status).ok() && condition(status)) return status;
      absl::SleepFor(kPoll);
    }
    throw std::runtime_error("the job never got there:\n" + status.DebugString() + first_->Errors() +
                             worker_->Errors());
  }

  // Shard 1 once more, by another process at an address of its own. The first one is left alone.
  void StartShardElsewhere(const std::filesystem::path& directory) {
    StartShard(third_, directory, 1, {"--coordinator", AddressOf(*first_)});
  }

  // Everything that belongs to the job, not the data service.
  std::vector<Program*> ProgramsOfTheJob() { return {&*worker_, &*first_, &*second_}; }

  TcpRelay to_data, to_shard, worker_to_coordinator, shard_to_coordinator;

 private:
  static std::string AddressOf(Program& program) { return program.WaitForAddresses().grpc; }
  void StartShard(std::optional<Program>& shard, const std::filesystem::path& directory, int index,
                  std::vector<std::string> flags) const {
    flags.insert(flags.end(), shard_flags_.begin(), shard_flags_.end());
    flags.insert(flags.end(), {"--shard", absl::StrCat(index), "--num-shards", "2", "--listen", "127.0.0.1:0",
                               "--http-listen", "127.0.0.1:0"});
    shard.emplace("millrace-ps", std::move(flags), directory / absl::StrCat("shard-", index, ".stderr"));
  }

  const std::vector<std::string> shard_flags_;
  Program data_;
  std::optional<Program> first_, second_, third_, worker_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
};

// What the cluster's job comes to in peace. Writes the dataset, too.
std::string QuietDigest(const TemporaryDirectory& temporary) {
  WriteIdxDataset(temporary / "data");
  ClusterProcess quiet(temporary / "quiet", temporary / "data",
                       {"--epochs", "4", "--batch-size", "64", "--seed", "3", "--checkpoint-steps", "10", "--workers",
                        "1", "--no-serving"});
  return Finish(quiet)["weights_sha256"];
}

class PartitionTest : public testing::TestWithParam<Cut> {};

TEST_P(PartitionTest, TrainingGoesOnWhenTheNetworkIsBack) {
  TemporaryDirectory temporary;
  const std::string expected = QuietDigest(temporary);

  Cluster cluster(temporary.path(), temporary / "data");
  const uint64_t before = cluster.WaitUntil([](const auto& status) { return status.version() >= 15; }).version();
  TcpRelay& relay = *GetParam().relay(cluster);
  relay.Cut();
  const absl::Time cut = absl::Now();
  if (GetParam().named.empty()) {
    cluster.WaitUntil([&](const auto& status) { return status.version() >= before + 10; });
  } else {
    const std::string waiting_for =
        cluster.WaitUntil([](const auto& status) { return !status.waiting_for().empty(); }).waiting_for();
    std::printf("%s cut for %.1f s: %s\n", GetParam().between.c_str(), absl::ToDoubleSeconds(absl::Now() - cut),
                waiting_for.c_str());
    EXPECT_THAT(waiting_for, HasSubstr(GetParam().named));
  }
  absl::SleepFor(cut + GetParam().time - absl::Now());  // the fault itself
  relay.Mend();
  const absl::Time mended = absl::Now();
  const uint64_t version = cluster.WaitUntil([](const auto&) { return true; }).version();
  const v1::JobStatus on = cluster.WaitUntil(
      [&](const auto& status) { return status.version() > version || status.state() == v1::JobStatus::STATE_DONE; });
  std::printf("%s mended: the next step after %.1f s\n", GetParam().between.c_str(),
              absl::ToDoubleSeconds(absl::Now() - mended));
  EXPECT_EQ(on.recovery_count(), 0u) << "no weights were lost";
  const v1::JobStatus done =
      cluster.WaitUntil([](const auto& status) { return status.state() == v1::JobStatus::STATE_DONE; });
  EXPECT_EQ(done.weights_sha256(), expected);
}

INSTANTIATE_TEST_SUITE_P(
    All, PartitionTest,
    testing::Values(
        Cut{"worker_and_coordinator", [](Cluster& c) { return &c.worker_to_coordinator; }, absl::Seconds(4),
            "worker-0"},
        Cut{"worker_and_coordinator_long", [](Cluster& c) { return &c.worker_to_coordinator; }, kLongCut, "worker-0"},
        Cut{"worker_and_shard", [](Cluster& c) { return &c.to_shard; }, absl::Seconds(4), "shard 1"},
        Cut{"worker_and_shard_long", [](Cluster& c) { return &c.to_shard; }, kLongCut, "shard 1"},
        Cut{"worker_and_data", [](Cluster& c) { return &c.to_data; }, absl::Seconds(4), "data service"},
        Cut{"shard_and_coordinator", [](Cluster& c) { return &c.shard_to_coordinator; }, absl::Seconds(4), ""}),
    [](const auto& info) { return info.param.between; });

// As when a machine is gone: nobody closes the connections to it, and its replacement has another address.
TEST(VanishedShardTest, IsReplacedByOneAtAnotherAddress) {
  TemporaryDirectory temporary;
  const std::string expected = QuietDigest(temporary);

  Cluster cluster(temporary.path(), temporary / "data");
  cluster.WaitUntil([](const auto& status) { return status.committed_version() >= 10 && status.version() >= 15; });
  cluster.to_shard.Cut();
  cluster.shard_to_coordinator.Cut();
  EXPECT_THAT(cluster.WaitUntil([](const auto& status) { return !status.waiting_for().empty(); }).waiting_for(),
              HasSubstr("shard 1"));
  cluster.StartShardElsewhere(temporary.path());
  const v1::JobStatus done =
      cluster.WaitUntil([](const auto& status) { return status.state() == v1::JobStatus::STATE_DONE; });
  EXPECT_EQ(done.recovery_count(), 1u);
  EXPECT_NE(done.shards(1).address(), cluster.to_shard.address());
  EXPECT_EQ(done.weights_sha256(), expected);
}

// Without anyone who supervises them, as a batch system starts them.
TEST(StandaloneTest, EveryProcessEndsWithItsJob) {
  TemporaryDirectory temporary;
  WriteIdxDataset(temporary / "data");
  Cluster cluster(temporary.path(), temporary / "data", {"--exit-when-done"});
  cluster.WaitUntil([](const auto& status) { return status.state() == v1::JobStatus::STATE_DONE; });
  for (Program* program : cluster.ProgramsOfTheJob()) EXPECT_EQ(program->Wait(), 0) << program->Errors();
}

// Neither may a call that has no deadline wait for the quarter of an hour after which the kernel gives a peer up, nor a
// server keep it for so long. This one has a deadline only to end the test.
TEST(VanishedPeerTest, IsGivenUpByBothSides) {
  TemporaryDirectory temporary;
  WriteIdxDataset(temporary / "data", {.train_count = 20, .test_count = 10});
  Program service("millrace-data",
                  {"--data-dir", temporary / "data", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"},
                  temporary / "stderr");
  TcpRelay relay;
  relay.ForwardTo(service.WaitForAddresses().grpc);

  RawStream watch(MakeChannel(relay.address()), "/grpc.health.v1.Health/Watch", absl::Minutes(1));
  watch.Write("");
  watch.WritesDone();
  ASSERT_TRUE(watch.Read().has_value());
  relay.Cut();
  while (watch.Read().has_value()) {
  }
  EXPECT_EQ(watch.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  const auto metrics = [&] { return HttpFetch(service.WaitForAddresses().http, "/metrics").body; };
  EXPECT_TRUE(Eventually([&] {
    return testing::Matches(ContainsRegex("grpc_server_handled_total[^\n]*Health/Watch"))(metrics());
  })) << metrics();
}

}  // namespace
}  // namespace millrace
