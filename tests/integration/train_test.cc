// What a local cluster of real processes promises: the same bits for every shape of the cluster, and through deaths.
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

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

// An epoch of the 1440 samples, each of them trained once.
bool IsWholeAndEqual(const v1::VisitCheck& check) {
  return check.samples() == 1440 && check.expected_samples() == 1440 && check.visits() == check.expected_visits();
}

class TrainTest : public testing::Test {
 protected:
  TrainTest() { WriteIdxDataset(data_dir_); }

  ClusterProcess Start(const std::string& name, Flags flags) {
    const Flags job = {"--epochs", "2", "--batch-size", "64", "--seed", "3", "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(temporary_ / name, data_dir_, flags);
  }

  // Goes on with the run `name`.
  nlohmann::json Resume(const std::string& name, Flags flags) {
    const Flags always = {"--resume", "--no-serving"};
    flags.insert(flags.begin(), always.begin(), always.end());
    return Finish(ClusterProcess(temporary_ / name, data_dir_, flags));
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

TEST_F(TrainTest, EveryTrainingOptionKeepsTheBitsTheSame) {
  // 5 slots of a batch of 64: one of 12 samples and four of 13.
  Flags options = {"--optimizer", "adamw", "--weight-decay", "0.05", "--schedule", "cosine", "--warmup-steps", "10"};
  options.insert(options.end(), {"--label-smoothing", "0.1", "--clip-norm", "0.5", "--slots", "5", "--epochs", "4"});
  options.insert(options.end(), {"--early-stopping-patience", "3", "--best-by", "accuracy"});
  const auto with = [&](Flags flags) {
    flags.insert(flags.end(), options.begin(), options.end());
    return flags;
  };
  const nlohmann::json reference = Finish(Start("reference", with({"--workers", "1"})));
  ASSERT_EQ(reference["weights_sha256"].get<std::string>().size(), 64u);
  EXPECT_FALSE(reference["best"]["test_accuracy"].is_null());
  for (const Flags& shape : {Flags{"--workers", "2", "--shards", "3"}, Flags{"--workers", "3", "--shards", "2"}}) {
    const nlohmann::json result = Finish(Start("shape-" + shape[1], with(shape)));
    for (const char* name : {"weights_sha256", "test_loss", "best", "steps"}) {
      EXPECT_EQ(result[name], reference[name]) << name << " of " << testing::PrintToString(shape);
    }
  }
  for (const Flags& without : {Flags{"--label-smoothing", "0"}, Flags{"--schedule", "constant"},
                               Flags{"--weight-decay", "0"}, Flags{"--clip-norm", "0"}, Flags{"--warmup-steps", "0"}}) {
    Flags flags = with({});
    flags.insert(flags.end(), without.begin(), without.end());
    EXPECT_NE(Finish(Start("without" + without[0], flags))["weights_sha256"], reference["weights_sha256"])
        << without[0] << " has no effect";
  }
}

TEST_F(TrainTest, NarrowNumbersOnTheWireToo) {
  for (const char* wire : {"bf16", "fp16", "mxint8"}) {
    const auto with = [&](const std::string& name, Flags shape) {
      const Flags job = {"--epochs", "6", "--wire", wire};
      shape.insert(shape.begin(), job.begin(), job.end());
      return Finish(Start(wire + name, shape));
    };
    const nlohmann::json reference = with("-one", {"--workers", "1"});
    EXPECT_GT(reference["test_accuracy"], 0.9) << wire;
    EXPECT_EQ(with("-three", {"--workers", "3", "--shards", "2"})["weights_sha256"], reference["weights_sha256"])
        << wire;
    EXPECT_NE(Finish(Start("fp32-beside-" + std::string(wire), {"--epochs", "6"}))["weights_sha256"],
              reference["weights_sha256"])
        << wire << " has no effect";
  }
}

TEST_F(TrainTest, SlotsOfUnequalSizeWeighTheirSamplesAlike) {
  // 48 slots of a batch of 64: of one sample or two. What differs from the undivided batch is the order of additions.
  const Flags job = {"--epochs", "1", "--optimizer", "sgd", "--learning-rate", "0.05"};
  const auto with_slots = [&](const std::string& slots) {
    Flags flags = job;
    flags.insert(flags.end(), {"--slots", slots});
    return Finish(Start("slots-" + slots, flags));
  };
  const nlohmann::json whole = with_slots("1"), uneven = with_slots("48");
  EXPECT_NE(uneven["weights_sha256"], whole["weights_sha256"]);
  EXPECT_NEAR(uneven["test_loss"].get<double>() / whole["test_loss"].get<double>(), 1, 1e-4);
}

TEST_F(TrainTest, AJobThatGetsNoBetterStopsAndIsOverWhenResumed) {
  // No loss falls by 100: two epochs after the first.
  const nlohmann::json stopped = Finish(
      Start("stopped", {"--epochs", "9", "--early-stopping-patience", "2", "--early-stopping-min-delta", "100"}));
  EXPECT_EQ(stopped["stopped_early"], true);
  EXPECT_EQ(stopped["epochs"], 3);
  EXPECT_EQ(stopped["steps"], 3 * 23);
  const nlohmann::json again = Resume("stopped", {});
  for (const char* name : {"steps", "stopped_early", "weights_sha256", "test_loss", "best"}) {
    EXPECT_EQ(again[name], stopped[name]) << name;
  }
  const nlohmann::json further = Resume("stopped", {"--early-stopping-patience", "3"});
  EXPECT_EQ(further["steps"], 4 * 23) << "a more patient job goes on";
}

TEST_F(TrainTest, TheBestVersionIsTestedAndServed) {
  // A rate at which the last epochs are worse than one before them.
  ClusterProcess run(temporary_ / "best", data_dir_,
                     {"--epochs", "8", "--batch-size", "64", "--seed", "3", "--optimizer", "sgd", "--learning-rate",
                      "0.5", "--momentum", "0.9", "--serve-best"});
  const nlohmann::json result = Finish(std::move(run));
  ASSERT_FALSE(result["best"].is_null());
  const uint64_t best = result["best"]["version"];
  EXPECT_LT(best, result["steps"]) << "choose another rate: the last version should not be the best";
  EXPECT_EQ(result["served"]["version"], best);
  EXPECT_NEAR(result["served"]["accuracy"], result["best"]["test_accuracy"], 1e-9);
  EXPECT_TRUE(std::filesystem::exists(temporary_ / "best/checkpoints" / std::to_string(best) / "manifest.json"));
  std::ifstream manifest(temporary_ / "best/models/mnist" / std::to_string(best) / "manifest.json");
  EXPECT_GT(nlohmann::json::parse(manifest)["reference"]["rows"], 0) << "of validation images, for drift";
  std::ifstream file(temporary_ / "best/best.json");
  EXPECT_EQ(nlohmann::json::parse(file)["version"], best);
}

TEST_F(TrainTest, AResumedRunGoesOnWithTheRateOfItsStep) {
  const Flags schedule = {"--workers", "2", "--schedule", "one-cycle"};
  const nlohmann::json reference = Finish(Start("reference", LongJob(schedule)));
  {
    ClusterProcess run = Start("interrupted", LongJob(schedule));
    run.WaitUntil([](const auto& status) { return status.committed_version() >= 30; });
    run.program().Signal(SIGINT);
    EXPECT_EQ(run.Wait(), 130);
  }
  ClusterProcess longer(temporary_ / "interrupted", data_dir_, {"--resume", "--no-serving", "--epochs", "7"});
  EXPECT_NE(longer.Wait(), 0);
  EXPECT_THAT(longer.program().Errors(), HasSubstr("was laid out over 6 epochs"));
  const nlohmann::json result = Resume("interrupted", {});
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
}

// Batch normalisation keeps statistics in training, and dropout draws random numbers. What is served is normalised by
// the same statistics as what was evaluated.
TEST_F(TrainTest, ANetworkWithStatisticsAndNoiseIsTheSameBitsToo) {
  const auto run = [&](const std::string& name, Flags flags) {
    const Flags job = {"--model", "cnn_deep", "--epochs", "3", "--batch-size", "64", "--seed", "3"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return Finish(ClusterProcess(temporary_ / name, data_dir_, flags));
  };
  const nlohmann::json reference = run("reference", {"--workers", "1"});
  EXPECT_GT(reference["test_accuracy"], 0.9);
  EXPECT_EQ(reference["served"]["accuracy"], reference["test_accuracy"]);
  int number = 0;
  for (const Flags& shape :
       {Flags{"--workers", "2"}, Flags{"--workers", "3"}, Flags{"--workers", "2", "--shards", "2"}}) {
    Flags flags = shape;
    flags.push_back("--no-serving");
    const nlohmann::json result = run("shape-" + std::to_string(number++), flags);
    EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]) << testing::PrintToString(shape);
    EXPECT_EQ(result["test_loss"], reference["test_loss"]) << testing::PrintToString(shape);
  }
}

TEST_F(TrainTest, AnAutoencoderIsTrainedAndServed) {
  const nlohmann::json result = Finish(ClusterProcess(
      temporary_ / "autoencoder", data_dir_, {"--model", "autoencoder", "--epochs", "3", "--batch-size", "64"}));
  EXPECT_TRUE(result["test_accuracy"].is_null());
  EXPECT_TRUE(result["served"]["accuracy"].is_null());
  EXPECT_EQ(result["served"]["requests"], 200);
  EXPECT_NEAR(result["served"]["error"], result["test_loss"], 1e-6);
  EXPECT_LT(result["test_loss"], 0.1);
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
  // It is asked again what visits there should have been until it is back.
  run.WaitUntil([](const auto& status) { return std::ranges::any_of(status.visit_checks(), IsWholeAndEqual); });
  const nlohmann::json result = Finish(std::move(run));
  EXPECT_EQ(result["visit_mismatches"], 0);
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

TEST_F(TrainTest, AnInterruptedRunCanBeResumed) {
  const nlohmann::json reference = Finish(Start("reference", LongJob({"--workers", "2", "--shards", "2"})));
  {
    ClusterProcess run = Start("interrupted", LongJob({"--workers", "2", "--shards", "2"}));
    run.WaitUntil([](const auto& status) { return status.committed_version() >= 10; });
    run.program().Signal(SIGINT);
    EXPECT_EQ(run.Wait(), 130);
  }
  // Somewhere in the middle of an epoch, which is checked as a whole all the same.
  ClusterProcess resumed(temporary_ / "interrupted", data_dir_, {"--resume", "--no-serving"});
  resumed.WaitUntil([](const auto& s) { return std::ranges::any_of(s.visit_checks(), IsWholeAndEqual); });
  const nlohmann::json result = Finish(std::move(resumed));
  EXPECT_EQ(result["weights_sha256"], reference["weights_sha256"]);
  EXPECT_EQ(result["visit_mismatches"], 0);
}

// At the ends of epochs, where one is easily left out or passed twice; and every time by another cluster.
TEST_F(TrainTest, ARunResumedByOtherClustersIsTheUninterruptedOne) {
  const nlohmann::json reference = Finish(Start("reference", {"--epochs", "3", "--workers", "2"}));
  Finish(Start("resumed", {"--epochs", "1", "--workers", "1"}));
  Resume("resumed", {"--epochs", "2", "--workers", "3", "--shards", "2"});
  const nlohmann::json result = Resume("resumed", {"--epochs", "3", "--workers", "2", "--shards", "1"});
  const nlohmann::json once_more = Resume("resumed", {});
  for (const char* name : {"steps", "weights_sha256", "optimizer_sha256", "test_loss", "best"}) {
    EXPECT_EQ(result[name], reference[name]) << name;
    EXPECT_EQ(once_more[name], reference[name]) << name << ", resumed at its end";
  }
}

TEST_F(TrainTest, AModelOfMoreThanFourMebibytesTrains) {
  ClusterProcess run = Start("mlp", {"--model", "mlp"});
  const v1::JobStatus status = run.WaitUntil([](const auto& s) { return s.version() > 0; });
  EXPECT_GT(status.plan().parameter_count() * sizeof(float), uint64_t{4} << 20) << "gRPC's default message limit";
  EXPECT_GT(Finish(std::move(run))["test_accuracy"], 0.9);
}

}  // namespace
}  // namespace millrace
