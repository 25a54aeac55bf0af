#include "services/cli/checkpoint_records.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class CheckpointRecordsTest : public testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((directory_ / path).parent_path());
    std::ofstream(directory_ / path, std::ios::binary) << text;
  }
  // As the parameter server writes it; `sha256` is empty for one without checksums.
  void WriteManifest(const std::string& path, const std::string& sha256) {
    const std::string checksums =
        sha256.empty() ? ""
                       : absl::StrCat(R"("slot_checksums": {"name": "slot-checksums.txt", "bytes": 1, "sha256": ")",
                                      sha256, R"("},)");
    Write(path, absl::StrCat("{", checksums,
                             R"("plan": {"spec": {"slots": 2}, "dataset": {"fingerprint": "f"}, "steps_per_epoch": "9"},
                                "fingerprint": {"torch_version": "1.13.1", "cpu_capability": "AVX2", "threads": 3}})"));
  }

  TemporaryDirectory directory_;
};

TEST_F(CheckpointRecordsTest, AreReadByVersion) {
  const SlotChecksums checksums{.first_step = 8, .slots = 2, .values = {1, 2, 3, 4}};
  const std::string text = SlotChecksumsToText(checksums);
  WriteManifest("checkpoints/10/manifest.json", Sha256Hex(text));
  Write("checkpoints/10/slot-checksums.txt", text);
  WriteManifest("checkpoints/8/manifest.json", "");
  Write("checkpoints/12/shard-00000-of-00001.safetensors", "not committed");
  Write("checkpoints/13/manifest.json", "{");
  const auto records = ReadCheckpointRecords(directory_.path());
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[0].version, 8u);
  EXPECT_THAT(records[0].checksums, StatusIs(absl::StatusCode::kNotFound, HasSubstr("checkpoints/8 has no")));
  EXPECT_EQ(records[1].version, 10u);
  EXPECT_EQ(records[1].plan.spec().slots(), 2u);
  EXPECT_EQ(records[1].fingerprint, (RunFingerprint{"1.13.1", "AVX2", 3, "cpu"}));
  ASSERT_THAT(records[1].checksums, IsOk());
  EXPECT_EQ(*records[1].checksums, checksums);
  EXPECT_EQ(MergeChecksums(records), (StepChecksums{{8, {1, 2}}, {9, {3, 4}}}));
}

TEST_F(CheckpointRecordsTest, AFileThatIsNotWhatTheManifestSaysIsDamaged) {
  WriteManifest("checkpoints/10/manifest.json", Sha256Hex("another"));
  Write("checkpoints/10/slot-checksums.txt", SlotChecksumsToText({.first_step = 8, .slots = 1, .values = {1}}));
  WriteManifest("checkpoints/11/manifest.json", Sha256Hex("nonsense"));
  Write("checkpoints/11/slot-checksums.txt", "nonsense");
  WriteManifest("checkpoints/12/manifest.json", Sha256Hex("there is no such file"));
  const auto records = ReadCheckpointRecords(directory_.path());
  ASSERT_THAT(records, SizeIs(3));
  EXPECT_THAT(records[0].checksums, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("SHA-256")));
  EXPECT_THAT(records[1].checksums, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("line 1 is damaged")));
  EXPECT_THAT(records[2].checksums, StatusIs(absl::StatusCode::kNotFound, HasSubstr("slot-checksums.txt")));
}

TEST(CompareSlotsTest, NamesTheFirstThatDiffers) {
  const StepChecksums before = {{4, {1, 2}}, {5, {3, 4}}, {6, {5, 6}}};
  StepChecksums after = before;
  after[9] = {0, 0};
  SlotComparison comparison = CompareSlots(before, after);
  EXPECT_EQ(comparison.steps, 3u);
  EXPECT_EQ(comparison.slots, 6u);
  EXPECT_EQ(comparison.differences, 0u);
  EXPECT_FALSE(comparison.first.has_value());
  after.erase(4);
  after[5] = {3, 9};
  after[6] = {9, 9};
  comparison = CompareSlots(before, after);
  EXPECT_EQ(comparison.steps, 2u);
  EXPECT_EQ(comparison.differences, 3u);
  ASSERT_TRUE(comparison.first.has_value());
  EXPECT_EQ(comparison.first->step, 5u);
  EXPECT_EQ(comparison.first->slot, 1u);
  EXPECT_EQ(comparison.first->before, 4u);
  EXPECT_EQ(comparison.first->after, 9u);
}

}  // namespace
}  // namespace millrace
