// A step that is made again comes to what was recorded when the job ran, whatever happened to it then; and if it does
// not, the first gradient that differs is named.
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/slot_checksums.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Flags = std::vector<std::string>;

class ReplayTest : public testing::Test {
 protected:
  ReplayTest() { WriteIdxDataset(data_dir_); }

  ClusterProcess Start(Flags flags) {
    const Flags job = {"--epochs",           "3",  "--batch-size", "64", "--slots",     "4",
                       "--checkpoint-steps", "10", "--workers",    "2",  "--no-serving"};
    flags.insert(flags.begin(), job.begin(), job.end());
    return ClusterProcess(out_, data_dir_, flags);
  }
  void Train(const Flags& flags) {
    ClusterProcess run = Start(flags);
    ASSERT_EQ(run.Wait(), 0) << run.program().Errors();
  }

  struct Outcome {
    int exit_code;
    std::string errors;
    nlohmann::json json;  // null if there is none
  };
  Outcome Replay(uint64_t step, uint32_t slot, const Flags& flags = {}) {
    const fs::path json = temporary_ / "replay.json", errors = temporary_ / "replay.stderr";
    fs::remove(json);
    fs::remove(errors);
    Flags all = {"replay",           "--out",  out_.string(), "--step", absl::StrCat(step), "--slot",
                 absl::StrCat(slot), "--json", json.string()};
    all.insert(all.end(), flags.begin(), flags.end());
    Program replay("millrace", all, errors);
    Outcome outcome{.exit_code = replay.Wait(), .errors = replay.Errors(), .json = nullptr};
    if (fs::exists(json)) outcome.json = nlohmann::json::parse(*ReadFile(json, 1 << 20));
    return outcome;
  }
  void ExpectEqual(uint64_t step, uint32_t slot, uint64_t start_version) {
    const Outcome outcome = Replay(step, slot);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
    ASSERT_TRUE(outcome.json.is_object());
    EXPECT_EQ(outcome.json["equal"], true) << outcome.json;
    EXPECT_EQ(outcome.json["start_version"], start_version);
    EXPECT_EQ(outcome.json["steps_compared"], step + 1 - start_version);
    EXPECT_EQ(outcome.json["slots_compared"], 4 * (step + 1 - start_version));
    EXPECT_EQ(outcome.json["other_fingerprint"], false);
  }

  fs::path Checkpoint(uint64_t version) const { return out_ / "checkpoints" / std::to_string(version); }
  std::vector<uint64_t> Checkpoints() const { return NumberedEntries(out_ / "checkpoints"); }  // newest first

  // As if the slot had come to something else when the job ran.
  void ChangeRecord(uint64_t version, uint64_t step, uint32_t slot) const {
    const fs::path file = Checkpoint(version) / kSlotChecksumsFile, manifest = Checkpoint(version) / "manifest.json";
    const std::string before = *ReadFile(file, 1 << 20);
    SlotChecksums checksums = *SlotChecksumsFromText(before);
    checksums.values.at((step - checksums.first_step) * checksums.slots + slot) ^= 1;
    const std::string after = SlotChecksumsToText(checksums);
    ASSERT_TRUE(WriteFileAtomically(file, after).ok());
    const std::string json = *ReadFile(manifest, 1 << 20);
    ASSERT_THAT(json, HasSubstr(Sha256Hex(before)));
    ASSERT_TRUE(WriteFileAtomically(manifest, absl::StrReplaceAll(json, {{Sha256Hex(before), Sha256Hex(after)}})).ok());
  }

  TemporaryDirectory temporary_;
  const fs::path data_dir_ = temporary_ / "data";
  const fs::path out_ = temporary_ / "job";
};

TEST_F(ReplayTest, AStepInTheMiddleIsWhatItWasAndAnotherRecordIsNamed) {
  Train({});
  const std::vector<uint64_t> versions = Checkpoints();
  ASSERT_GE(versions.size(), 3u);
  const uint64_t start = versions[2], next = versions[1];
  ASSERT_GE(next, start + 3);
  const uint64_t step = start + 2;
  const fs::path copy = temporary_ / "before";
  fs::copy(out_ / "checkpoints", copy, fs::copy_options::recursive);
  ExpectEqual(step, 3, start);
  EXPECT_EQ(Checkpoints(), NumberedEntries(copy)) << "the job's directory is only read";

  ChangeRecord(next, step - 1, 2);
  Outcome outcome = Replay(step, 3);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.errors;
  ASSERT_TRUE(outcome.json.is_object());
  EXPECT_EQ(outcome.json["equal"], false);
  EXPECT_EQ(outcome.json["recorded"], outcome.json["recomputed"]) << "it is another slot that differs";
  EXPECT_EQ(outcome.json["differences"], 1);
  EXPECT_EQ(outcome.json["first_difference"]["step"], step - 1);
  EXPECT_EQ(outcome.json["first_difference"]["slot"], 2);
  outcome = Replay(step - 1, 2);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.errors;
  EXPECT_NE(outcome.json["recorded"], outcome.json["recomputed"]);

  // What cannot be replayed: one line, and the exit code says whose fault it is.
  outcome = Replay(step, 4);
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.errors, HasSubstr("--slot 4: the job has 4 slots, 0 to 3"));
  outcome = Replay(versions[0], 0);
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.errors, HasSubstr(absl::StrCat("the last recorded step is ", versions[0] - 1)));
  outcome = Replay(1, 0);
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.errors, HasSubstr("before the oldest checkpoint that is kept"));
  WriteIdxDataset(temporary_ / "other", {.seed = 2});
  outcome = Replay(step, 0, {"--data-dir", (temporary_ / "other").string()});
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_THAT(outcome.errors, HasSubstr("another dataset"));
  std::ofstream(Checkpoint(next) / kSlotChecksumsFile, std::ios::app) << "torn";
  outcome = Replay(step, 0);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_THAT(outcome.errors, HasSubstr("slot-checksums.txt is damaged"));
}

TEST_F(ReplayTest, ADirectoryWithoutAJobIsToldAtOnce) {
  const Outcome outcome = Replay(1, 0);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_THAT(outcome.errors, HasSubstr(absl::StrCat("there is no job in ", out_.string())));
}

TEST_F(ReplayTest, BeforeTheFirstCheckpointItBeginsWithTheJob) {
  Train({"--epochs", "1", "--keep-checkpoints", "100"});
  ExpectEqual(4, 1, 0);
  WriteIdxDataset(temporary_ / "other", {.seed = 2});
  const Outcome outcome = Replay(4, 1, {"--data-dir", (temporary_ / "other").string()});
  EXPECT_EQ(outcome.exit_code, 78) << "there is no checkpoint that could tell";
  EXPECT_THAT(outcome.errors, HasSubstr("another dataset"));
}

TEST_F(ReplayTest, StepsThatWereMadeTwiceAreWhatTheyWere) {
  ClusterProcess run = Start({"--epochs", "6", "--shards", "2", "--keep-checkpoints", "100"});
  const v1::JobStatus before =
      run.WaitUntil([](const auto& status) { return status.committed_version() >= 10 && status.version() >= 13; });
  kill(run.program().Children("millrace-worker").at(0), SIGKILL);
  run.WaitUntil([&](const auto& status) { return status.version() > before.version(); });
  kill(run.program().Children("millrace-ps").at(1), SIGKILL);
  const v1::JobStatus after = run.WaitUntil([&](const auto& status) {
    return status.plan().run_id() != before.plan().run_id() && status.version() > status.plan().start_version();
  });
  const uint64_t again = after.plan().start_version();
  ASSERT_EQ(run.Wait(), 0) << run.program().Errors();
  ASSERT_GT(again, 0u);
  ExpectEqual(again + 1, 0, again);
  const std::vector<uint64_t> versions = Checkpoints();
  const uint64_t killed_at = before.version();
  ExpectEqual(killed_at, 2, *std::ranges::find_if(versions, [&](uint64_t version) { return version <= killed_at; }));
}

TEST_F(ReplayTest, WithBoundedStalenessToo) {
  Train({"--staleness", "2", "--epochs", "2"});
  const uint64_t start = Checkpoints().at(1);
  ExpectEqual(start + 1, 2, start);
}

TEST_F(ReplayTest, WithoutABoundNothingCanBeMadeAgain) {
  Train({"--staleness", "unbounded", "--epochs", "1"});
  const Outcome outcome = Replay(Checkpoints().at(0) - 1, 0);
  EXPECT_EQ(outcome.exit_code, 78);
  EXPECT_THAT(outcome.errors, HasSubstr("--staleness unbounded"));
}

}  // namespace
}  // namespace millrace
