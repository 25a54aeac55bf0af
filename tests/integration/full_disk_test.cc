// A disk that fills up, as a person meets it: training goes on while it may still come right, what is saved stays
// usable, nothing half-written is left, and the end is one line that names the path and the reason.
#include <algorithm>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/integration/small_disk.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Flags = std::vector<std::string>;

class FullDiskTest : public testing::Test {
 protected:
  FullDiskTest() { WriteIdxDataset(data_dir_, {.train_count = 400, .test_count = 100}); }

  // Six steps an epoch. The optimizer keeps no state, so that a checkpoint and a model version take 2.7 MB each.
  ClusterProcess Start(const fs::path& out, const Flags& flags) {
    fs::remove(out.string() + ".stderr");
    Flags all = {"--batch-size", "64", "--optimizer", "sgd"};
    for (const Flags& more : {disk_.flags(), flags}) all.insert(all.end(), more.begin(), more.end());
    return ClusterProcess(out, data_dir_, all);
  }

  std::string ReferenceWeights(const std::string& epochs) {
    ClusterProcess run = Start(temporary_ / "reference", {"--no-serving", "--epochs", epochs});
    return Finish(run)["weights_sha256"];
  }

  // The lines by which the command itself ends, as opposed to what it told on the way.
  static std::vector<std::string> LastWords(ClusterProcess& run) {
    std::vector<std::string> lines;
    std::istringstream errors(run.program().Errors());
    for (std::string line; std::getline(errors, line);) {
      if (line.starts_with("millrace: ")) lines.push_back(line);
    }
    return lines;
  }

  // Every file and directory below `out`, but for the logs.
  static std::vector<std::string> EntriesOf(const fs::path& out) {
    std::vector<std::string> entries;
    for (const auto& entry : fs::recursive_directory_iterator(out)) {
      const std::string name = entry.path().lexically_relative(out).string();
      if (!name.starts_with("logs")) entries.push_back(name);
    }
    std::ranges::sort(entries);
    return entries;
  }

  SmallDisk disk_;
  TemporaryDirectory temporary_;
  const fs::path data_dir_ = temporary_ / "data";
  const fs::path out_ = disk_.root();
};

TEST_F(FullDiskTest, WithoutRoomForTheJobNothingStarts) {
  if (!disk_.mounted()) GTEST_SKIP() << "NO DISK THAT IS FULL: none can be mounted here";
  disk_.Fill(0);
  {
    ClusterProcess run = Start(out_, {"--epochs", "1", "--no-serving"});
    EXPECT_EQ(run.Wait(), 1);
    EXPECT_THAT(LastWords(run), ElementsAre(AllOf(HasSubstr(out_.string()), HasSubstr(disk_.full()))));
    EXPECT_THAT(EntriesOf(out_), ElementsAre(".lock", "models"));
  }
  disk_.Free();
  ClusterProcess again = Start(out_, {"--epochs", "1", "--no-serving"});
  EXPECT_EQ(again.Wait(), 0) << again.program().Errors();
}

TEST_F(FullDiskTest, WithoutRoomForTheFirstCheckpointTheRunEndsWithNothingSaved) {
  disk_.Fill();
  {
    ClusterProcess run = Start(out_, {"--epochs", "2"});
    EXPECT_EQ(run.Wait(), 1);
    EXPECT_THAT(LastWords(run), ElementsAre(AllOf(HasSubstr("the last checkpoint could not be written"),
                                                  HasSubstr((out_ / "checkpoints/12/").string()),
                                                  HasSubstr(disk_.full()), Not(HasSubstr("go on")))));
    EXPECT_FALSE(fs::exists(out_.string() + ".json"));
    EXPECT_THAT(EntriesOf(out_), ElementsAre(".lock", "best.json", "checkpoints", "checkpoints/.lock", "cluster.json",
                                             "job.textproto", "models", "models/mnist"));
  }
  disk_.Free();
  // The same command again: nothing of the first run is in its way.
  ClusterProcess again = Start(out_, {"--epochs", "2"});
  EXPECT_EQ(again.Wait(), 0) << again.program().Errors();
  EXPECT_EQ(again.Result()["served"]["version"], 12);
}

TEST_F(FullDiskTest, AVersionThatFitsDoesNotHideThatCheckpointsDoNot) {
  disk_.Fill(size_t{6} << 20);
  // Adam's checkpoint takes 8.3 MB.
  ClusterProcess run = Start(out_, {"--no-serving", "--epochs", "2", "--optimizer", "adam"});
  EXPECT_EQ(run.Wait(), 1);
  EXPECT_TRUE(fs::exists(out_ / "models/mnist/6/manifest.json"));
  EXPECT_THAT(LastWords(run), ElementsAre(AllOf(HasSubstr("the last checkpoint could not be written"),
                                                HasSubstr((out_ / "checkpoints/12/").string()))));
  EXPECT_THAT(run.program().Errors(), Not(HasSubstr("checkpoints are written again")));
}

TEST_F(FullDiskTest, WhatWasSavedStaysUsableAndResumeReachesTheSameBits) {
  ClusterProcess first = Start(out_, {"--no-serving", "--epochs", "1"});
  ASSERT_EQ(first.Wait(), 0) << first.program().Errors();
  const std::vector<std::string> saved = EntriesOf(out_);
  disk_.Fill();
  {
    ClusterProcess run = Start(out_, {"--no-serving", "--resume", "--epochs", "4"});
    EXPECT_EQ(run.Wait(), 1);
    EXPECT_THAT(LastWords(run),
                ElementsAre(AllOf(HasSubstr((out_ / "checkpoints/24/").string()), HasSubstr(disk_.full()),
                                  HasSubstr("go on from the checkpoint at step 6 with"))));
    EXPECT_EQ(EntriesOf(out_), saved);
  }
  disk_.Free();
  ClusterProcess resumed = Start(out_, {"--no-serving", "--resume"});
  ASSERT_EQ(resumed.Wait(), 0) << resumed.program().Errors();
  EXPECT_EQ(resumed.Result()["steps"], 24);
  EXPECT_EQ(resumed.Result()["weights_sha256"], ReferenceWeights("4"));
}

TEST_F(FullDiskTest, TrainingGoesOnAndTheNextCheckpointIsWrittenOnceThereIsSpace) {
  disk_.Fill();
  ClusterProcess run = Start(out_, {"--no-serving", "--epochs", "30"});
  run.program().WaitForError(disk_.full());
  EXPECT_THAT(run.program().Errors(), HasSubstr("CHECKPOINT FAILED, training goes on without it"));
  EXPECT_EQ(run.WaitUntil([](const auto&) { return true; }).committed_version(), 0u);
  disk_.Free(&run.program());
  EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
  EXPECT_THAT(run.program().Errors(), HasSubstr("checkpoints are written again"));
  EXPECT_EQ(run.Result()["weights_sha256"], ReferenceWeights("30"));
}

}  // namespace
}  // namespace millrace
