#include "services/parameter_server/checkpointer.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/metrics.h"
#include "common/model/manifest.h"
#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/services/parameter_server/checkpoint_test_util.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

const RunFingerprint kFingerprint = {"1.13.1", "AVX2", 1};

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Notes what it hears; the test waits for it.
class Listener : public CheckpointListener {
 public:
  void Committed(uint64_t version, const std::string& optimizer_sha256) override {
    Note(absl::StrCat("committed ", version));
    EXPECT_EQ(optimizer_sha256, OptimizerSha256({.step = version, .tensors = {}}));
  }
  void CommitFailed(uint64_t version, const absl::Status& why) override {
    Note(absl::StrCat("commit failed ", version, ": ", why.message()));
  }
  void Exported(uint64_t version, const std::string& weights_sha256) override {
    Note(absl::StrCat("exported ", version));
    MutexLock lock(&mutex_);
    digests_.push_back(weights_sha256);
  }
  void ExportFailed(uint64_t version, const absl::Status&) override { Note(absl::StrCat("export failed ", version)); }
  void Settled(uint64_t version) override { Note(absl::StrCat("settled ", version)); }

  // What was heard up to "settled `version`".
  std::vector<std::string> WaitForSettled(uint64_t version) {
    MutexLock lock(&mutex_);
    const std::string last = absl::StrCat("settled ", version);
    while (heard_.empty() || heard_.back() != last) {
      if (changed_.WaitWithTimeout(&mutex_, absl::Seconds(30))) return {"time is up"};
    }
    return std::exchange(heard_, {});
  }
  std::vector<std::string> digests() {
    MutexLock lock(&mutex_);
    return digests_;
  }

 private:
  void Note(std::string what) {
    MutexLock lock(&mutex_);
    heard_.push_back(std::move(what));
    changed_.SignalAll();
  }

  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> heard_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> digests_ ABSL_GUARDED_BY(mutex_);
};

class CheckpointerTest : public ::testing::Test {
 protected:
  CheckpointerTest() {
    ConfigureTorch(1);
    plan_ = TestPlan{.checkpoint_steps = 1}.Build();  // versions 1 to 6; 3 and 6 end an epoch
    v1::NetworkSpec& network = *plan_.mutable_network();
    network.set_architecture("mlp");
    network.set_channels(1);
    network.set_height(8);
    network.set_width(8);
    network.set_classes(10);
    network.set_standard_deviation(1);
    plan_.set_parameter_count(NetworkParameters(network)->size());
    plan_.set_output_dir(directory_.path().string());
    Start(2);
  }

  void Start(uint32_t shards) {
    checkpointer_.reset();
    auto fleet = std::make_unique<FakeFleet>(plan_, shards);
    fleet_ = fleet.get();
    checkpointer_ = std::make_unique<Checkpointer>(
        Checkpointer::Options{.plan = plan_, .keep = 2, .metrics = &metrics_}, &store_, std::move(fleet), &listener_);
  }
  fs::path Checkpoint(uint64_t version) const { return directory_ / "checkpoints" / std::to_string(version); }
  CheckpointManifest ReadManifest(uint64_t version) const {
    return *CheckpointManifestFromJson(*ReadFile(Checkpoint(version) / "manifest.json", 1 << 20));
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"test"};
  Listener listener_;
  v1::JobPlan plan_;
  CheckpointStore store_ = *CheckpointStore::Open(directory_.path());
  FakeFleet* fleet_ = nullptr;
  std::unique_ptr<Checkpointer> checkpointer_;
};

TEST_F(CheckpointerTest, CommitsAndReleases) {
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  EXPECT_THAT(listener_.WaitForSettled(1), ElementsAre("committed 1", "settled 1"));
  EXPECT_THAT(fleet_->released, ElementsAre("1 committed"));
  const CheckpointManifest manifest = ReadManifest(1);
  EXPECT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.weights_sha256, WeightsSha256(FakeWeights(plan_, 1)));
  EXPECT_EQ(manifest.plan.run_id(), 0u);
}

TEST_F(CheckpointerTest, DigestsDoNotDependOnTheNumberOfShards) {
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  listener_.WaitForSettled(1);
  const CheckpointManifest two = ReadManifest(1);
  Start(3);
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  listener_.WaitForSettled(1);
  const CheckpointManifest three = ReadManifest(1);
  EXPECT_EQ(three.files.size(), 3u);
  EXPECT_EQ(three.weights_sha256, two.weights_sha256);
  EXPECT_EQ(three.optimizer_sha256, two.optimizer_sha256);
}

TEST_F(CheckpointerTest, AnEpochEndIsCommittedAtOnceAndExportedWhenEvaluated) {
  checkpointer_->Commit(3, {.fingerprint = kFingerprint});
  v1::Evaluation evaluation;
  evaluation.set_version(3);
  evaluation.set_accuracy(0.5);
  evaluation.set_samples(10);
  checkpointer_->Export(3, evaluation, std::nullopt);
  EXPECT_THAT(listener_.WaitForSettled(3), ElementsAre("committed 3", "exported 3", "settled 3"));
  EXPECT_THAT(listener_.digests(), ElementsAre(WeightsSha256(FakeWeights(plan_, 3))));
  EXPECT_THAT(fleet_->released, ElementsAre("3 committed"));
  const auto manifest = ManifestFromJson(*ReadFile(directory_ / "models/mnist/3/manifest.json", 1 << 20));
  ASSERT_THAT(manifest, IsOk());
  EXPECT_EQ(manifest->validation->accuracy(), 0.5);
  EXPECT_EQ(manifest->epoch, 1u);
}

TEST_F(CheckpointerTest, AFailureLeavesNothingHalfWrittenAndTheNextOneIsTried) {
  fleet_->error = absl::ResourceExhaustedError("no space left on device");
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  EXPECT_THAT(listener_.WaitForSettled(1), ElementsAre("commit failed 1: no space left on device", "settled 1"));
  EXPECT_FALSE(fs::exists(Checkpoint(1)));
  EXPECT_THAT(fleet_->released, ElementsAre("1 given up"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_coordinator_commits_total{result=\"failed\"} 1"));
  fleet_->error = absl::OkStatus();
  checkpointer_->Commit(2, {.fingerprint = kFingerprint});
  EXPECT_THAT(listener_.WaitForSettled(2), ElementsAre("committed 2", "settled 2"));
}

TEST_F(CheckpointerTest, AnUnwritableDirectoryIsAFailureToo) {
  fs::remove_all(directory_ / "checkpoints");
  std::ofstream(directory_ / "checkpoints") << "a file where the directory was";
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  const std::vector<std::string> heard = listener_.WaitForSettled(1);
  ASSERT_EQ(heard.size(), 2u);
  EXPECT_THAT(heard[0], HasSubstr("commit failed 1"));
}

TEST_F(CheckpointerTest, OnlyTheNewestCheckpointsStay) {
  for (const uint64_t version : {1, 2, 4}) {
    checkpointer_->Commit(version, {.fingerprint = kFingerprint});
    listener_.WaitForSettled(version);
  }
  EXPECT_FALSE(fs::exists(Checkpoint(1)));
  EXPECT_TRUE(fs::exists(Checkpoint(2)));
  EXPECT_TRUE(fs::exists(Checkpoint(4)));
}

TEST_F(CheckpointerTest, TheBestCheckpointStaysUntilThereIsABetterOne) {
  std::vector<v1::Evaluation> history;
  const auto commit = [&](uint64_t version) {
    checkpointer_->Commit(version, {.validation = history, .fingerprint = kFingerprint});
    listener_.WaitForSettled(version);
  };
  const auto validate = [&](uint64_t version, double loss) {
    v1::Evaluation& evaluation = history.emplace_back();
    evaluation.set_version(version);
    evaluation.set_loss(loss);
  };
  commit(1);
  validate(1, 0.5);
  for (const uint64_t version : {2, 4}) commit(version);
  EXPECT_TRUE(fs::exists(Checkpoint(1) / "manifest.json"));
  validate(4, 0.4);
  commit(5);
  EXPECT_FALSE(fs::exists(Checkpoint(1)));
  EXPECT_FALSE(fs::exists(Checkpoint(2)));
  EXPECT_TRUE(fs::exists(Checkpoint(4)));
}

TEST_F(CheckpointerTest, AVersionThatIsNotPublishedIsSettledWithoutAnExport) {
  checkpointer_->Commit(3, {.fingerprint = kFingerprint});
  checkpointer_->Skip(3);
  EXPECT_THAT(listener_.WaitForSettled(3), ElementsAre("committed 3", "settled 3"));
  EXPECT_THAT(fleet_->released, ElementsAre("3 committed"));
  EXPECT_FALSE(fs::exists(directory_ / "models/mnist/3"));
}

TEST_F(CheckpointerTest, TheBestVersionIsWrittenDown) {
  v1::Evaluation evaluation;
  evaluation.set_version(3);
  evaluation.set_epoch(1);
  evaluation.set_loss(0.25);
  evaluation.set_accuracy(0.75);
  checkpointer_->NoteBest(evaluation);
  checkpointer_->Commit(1, {.fingerprint = kFingerprint});
  listener_.WaitForSettled(1);
  const auto json = nlohmann::json::parse(*ReadFile(directory_ / "best.json", 1 << 20));
  EXPECT_EQ(json["version"], 3);
  EXPECT_EQ(json["epoch"], 1);
  EXPECT_EQ(json["validation_loss"], 0.25);
  EXPECT_EQ(json["validation_accuracy"], 0.75);
}

TEST_F(CheckpointerTest, TheVersionResumedFromIsExportedFromDisk) {
  checkpointer_->Commit(3, {.fingerprint = kFingerprint});
  checkpointer_->Export(3, std::nullopt, std::nullopt);
  listener_.WaitForSettled(3);
  fs::remove_all(directory_ / "models");
  plan_.set_start_version(3);
  plan_.set_checkpoint_dir(Checkpoint(3).string());
  Start(1);
  fleet_->error = absl::NotFoundError("no snapshot");
  checkpointer_->Export(3, std::nullopt, std::nullopt);
  EXPECT_THAT(listener_.WaitForSettled(3), ElementsAre("exported 3", "settled 3"));
  EXPECT_EQ(listener_.digests().at(0), listener_.digests().at(1));
}

TEST_F(CheckpointerTest, WhatTheSlotsCameToIsSavedBesideTheWeights) {
  const SlotChecksums checksums{.first_step = 0, .slots = 2, .values = {0xab, 0xcd}};
  checkpointer_->Commit(1, {.fingerprint = kFingerprint, .slot_checksums = checksums});
  listener_.WaitForSettled(1);
  const auto text = ReadFile(Checkpoint(1) / kSlotChecksumsFile, 1 << 20);
  ASSERT_THAT(text, IsOk());
  const auto read = SlotChecksumsFromText(*text);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(*read, checksums);
  const CheckpointManifest manifest = ReadManifest(1);
  ASSERT_TRUE(manifest.slot_checksums.has_value());
  EXPECT_EQ(manifest.slot_checksums->sha256, Sha256Hex(*text));
  fs::remove(Checkpoint(1) / kSlotChecksumsFile);
  EXPECT_EQ((*store_.FindNewest())->version, 1u) << "the weights are as good as ever";
  checkpointer_->Commit(2, {.fingerprint = kFingerprint});
  listener_.WaitForSettled(2);
  EXPECT_FALSE(fs::exists(Checkpoint(2) / kSlotChecksumsFile));
  EXPECT_FALSE(ReadManifest(2).slot_checksums.has_value());
}

// As a disk that breaks reports it, through the same calls.
absl::Status DeviceError() {
  const auto unmapped = RealFileSystem().Open("/proc/self/mem");
  std::byte byte;
  return unmapped.ok() ? (*unmapped)->Read(std::span(&byte, 1)).status() : unmapped.status();
}

TEST_F(CheckpointerTest, ABrokenDiskAtTheLastVersionIsGivenUpAfterAFewAttempts) {
  fleet_->error = DeviceError();
  ASSERT_THAT(fleet_->error, StatusIs(absl::StatusCode::kInternal, HasSubstr("Input/output error")));
  checkpointer_->Commit(6, {.fingerprint = kFingerprint});
  checkpointer_->Skip(6);
  EXPECT_THAT(listener_.WaitForSettled(6),
              ElementsAre(HasSubstr("commit failed 6: cannot read /proc/self/mem"), "settled 6"));
  EXPECT_EQ(fleet_->saves, 3);
  EXPECT_FALSE(fs::exists(Checkpoint(6)));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_coordinator_commits_total{result=\"failed\"} 1"));
}

TEST_F(CheckpointerTest, StopsWhileTheLastVersionIsRetried) {
  fleet_->error = absl::ResourceExhaustedError("no space left on device");
  checkpointer_->Commit(6, {.fingerprint = kFingerprint});
  checkpointer_.reset();  // does not hang
}

}  // namespace
}  // namespace millrace
