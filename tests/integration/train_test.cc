// What a local cluster of real processes promises: the same bits for every shape of the cluster, and through deaths.
#include <signal.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr absl::Duration kGoesOnWithin = absl::Seconds(20);
#else
constexpr absl::Duration kGoesOnWithin = absl::Seconds(2);
#endif

class TrainTest : public testing::Test {
 protected:
  TrainTest() { WriteIdxDataset(data_dir_); }

  ClusterProcess Start(const std::string& name, Flags flags) {
    const Flags job = {"--epochs", "2", "--batch-size", "64", "--seed", "3", "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, data_dir_, flags);
  }

  nlohmann::json Finish(ClusterProcess run) {
    EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
    return run.Result();
  }

  // How many workers have computed something that counted.
  static int Contributors(const v1::JobStatus& status) {
    return static_cast<int>(
        std::ranges::count_if(status.workers(), [](const v1::WorkerStatus& worker) { return worker.samples() > 0; }));
  }

  // A job that takes a few seconds, so that something can happen in the middle of it.
  static Flags LongJob(Flags flags) {
    const Flags job = {"--epochs", "6", "--checkpoint-steps", "10"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return flags;
  }

  TemporaryDirectory temporary_;
  const std::filesystem::path data_dir_ = temporary_ / "data";
};

TEST_F(TrainTest, WeightsAreTheSameBitsForEveryShapeOfTheCluster) {
  // Long enough for every worker to get there while there is work.
  const Flags epochs = {"--epochs", "12"};
  const nlohmann::json reference = Finish(Start("reference", {"--workers", "1", epochs[0], epochs[1]}));
  ASSERT_EQ(reference["weights_sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(reference["steps"], 276) << "12 epochs of 1600 - 160 samples in batches of 64";
  EXPECT_GT(reference["test_accuracy"], 0.9);
  for (const Flags& shape :
       {Flags{"--workers", "2"}, Flags{"--workers", "3"}, Flags{"--workers", "2", "--shards", "2"}}) {
    Flags flags = shape;
    flags.insert(flags.end(), epochs.begin(), epochs.end());
    ClusterProcess run = Start("shape-" + shape[1] + "-" + std::to_string(shape.size()), flags);
    run.WaitUntil(
        [&](const auto& status) { return status.version() < 276 && Contributors(status) == std::stoi(shape[1]); });
    const nlohmann::json result = Finish(std::move(run));
    EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]) << testing::PrintToString(shape);
    EXPECT_EQ(result["test_loss"], reference["test_loss"]) << testing::PrintToString(shape);
    EXPECT_EQ(result["test_accuracy"], reference["test_accuracy"]) << testing::PrintToString(shape);
  }
  const nlohmann::json other_seed =
      Finish(Start("other-seed", {"--workers", "2", "--seed", "4", epochs[0], epochs[1]}));
  EXPECT_NE(other_seed["weights_sha256"], reference["weights_sha256"]) << "the digest tells runs apart";
}

TEST_F(TrainTest, AKilledWorkerIsReplacedAndChangesNoBit) {
  const nlohmann::json reference = Finish(Start("reference", LongJob({"--workers", "2"})));
  ClusterProcess run = Start("killed", LongJob({"--workers", "2"}));
  run.WaitUntil([](const auto& status) { return status.version() >= 15 && Contributors(status) == 2; });
  const std::vector<pid_t> workers = run.program().Children("millrace-worker");
  ASSERT_EQ(workers.size(), 2u);
  const absl::Time killed = absl::Now();
  kill(workers[0], SIGKILL);
  const uint64_t version = run.WaitUntil([](const auto&) { return true; }).version();
  // What was in flight may still land; two further steps need new work.
  run.WaitUntil([&](const auto& status) { return status.version() >= version + 3; });
  EXPECT_LT(absl::Now() - killed, kGoesOnWithin);
  const nlohmann::json result = Finish(std::move(run));
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
  EXPECT_EQ(result["test_loss"], reference["test_loss"]);
}

TEST_F(TrainTest, AKilledOnlyWorkerIsReplaced) {
  ClusterProcess run = Start("killed", LongJob({"--workers", "1"}));
  run.WaitUntil([](const auto& status) { return status.version() >= 15; });
  kill(run.program().Children("millrace-worker").at(0), SIGKILL);
  const nlohmann::json result = Finish(std::move(run));
  EXPECT_EQ(result["weights_sha256"], Finish(Start("reference", LongJob({"--workers", "2"})))["weights_sha256"]);
}

TEST_F(TrainTest, AKilledDataServiceIsReplacedAndChangesNoBit) {
  const nlohmann::json reference = Finish(Start("reference", LongJob({"--workers", "2"})));
  ClusterProcess run = Start("killed", LongJob({"--workers", "2"}));
  run.WaitUntil([](const auto& status) { return status.version() >= 15; });
  kill(run.program().Children("millrace-data").at(0), SIGKILL);
  const nlohmann::json result = Finish(std::move(run));
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
}

TEST_F(TrainTest, AKilledModelServiceIsReplacedAndServesTheFinalVersion) {
  ClusterProcess run(temporary_ / "served", data_dir_, LongJob({"--batch-size", "64", "--seed", "3"}));
  run.WaitUntil([](const auto& status) { return status.exported_version() > 0; });
  kill(run.program().Children("millrace-model").at(0), SIGKILL);
  EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
  EXPECT_THAT(run.program().Errors(), ContainsRegex("model \\(process [0-9]+\\) was killed by signal 9 .*starting it"));
  const nlohmann::json result = run.Result();
  EXPECT_EQ(result["served"]["version"], result["steps"]);
  EXPECT_EQ(result["served"]["requests"], 200);
  EXPECT_EQ(result["weights_sha256"], Finish(Start("reference", LongJob({"--workers", "2"})))["weights_sha256"]);
}

TEST_F(TrainTest, AKilledParameterServerEndsTheRunAndResumeReachesTheSameBits) {
  const nlohmann::json reference = Finish(Start("reference", LongJob({"--workers", "2"})));
  {
    ClusterProcess run = Start("killed", LongJob({"--workers", "2"}));
    run.WaitUntil([](const auto& status) { return status.committed_version() >= 20; });
    kill(run.program().Children("millrace-ps").at(0), SIGKILL);
    EXPECT_EQ(run.Wait(), 1);
    EXPECT_THAT(run.program().Errors(), HasSubstr("parameter-server-0"));
    EXPECT_THAT(run.program().Errors(), HasSubstr("--resume --out"));
  }
  // The job's flags come from the run that is resumed.
  ClusterProcess resumed(temporary_ / "killed", data_dir_, {"--resume", "--no-serving"});
  const v1::JobStatus status = resumed.WaitUntil([](const auto& s) { return s.version() > s.plan().start_version(); });
  EXPECT_GE(status.plan().start_version(), 20u);
  const nlohmann::json result = Finish(std::move(resumed));
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
  EXPECT_EQ(result["test_loss"], reference["test_loss"]);
}

TEST_F(TrainTest, AnInterruptedRunCanBeResumed) {
  const nlohmann::json reference = Finish(Start("reference", LongJob({"--workers", "2", "--shards", "2"})));
  {
    ClusterProcess run = Start("interrupted", LongJob({"--workers", "2", "--shards", "2"}));
    run.WaitUntil([](const auto& status) { return status.committed_version() >= 10; });
    run.program().Signal(SIGINT);
    EXPECT_EQ(run.Wait(), 130);
  }
  const nlohmann::json result =
      Finish(ClusterProcess(temporary_ / "interrupted", data_dir_, {"--resume", "--no-serving"}));
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
}

TEST_F(TrainTest, AModelOfMoreThanFourMebibytesTrains) {
  ClusterProcess run = Start("mlp", {"--model", "mlp"});
  const v1::JobStatus status = run.WaitUntil([](const auto& s) { return s.version() > 0; });
  EXPECT_GT(status.plan().parameter_count() * sizeof(float), uint64_t{4} << 20) << "gRPC's default message limit";
  EXPECT_GT(Finish(std::move(run))["test_accuracy"], 0.9);
}

}  // namespace
}  // namespace millrace
