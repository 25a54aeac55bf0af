#include "services/parameter_server/checkpoint_store.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "common/files.h"
#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class CheckpointStoreTest : public ::testing::Test {
 protected:
  void Write(uint64_t version) {
    ASSERT_THAT(store_.Prepare(version), IsOk());
    const std::string contents = "weights of " + std::to_string(version);
    ASSERT_THAT(WriteFileAtomically(store_.Directory(version) / "shard.safetensors", contents), IsOk());
    CheckpointManifest manifest;
    manifest.version = version;
    manifest.plan = TestPlan().Build();
    manifest.fingerprint = {"1.13.1", "AVX2", 1};
    manifest.files = {{"shard.safetensors", contents.size(), Sha256Hex(contents)}};
    manifest.weights_sha256 = Sha256Hex("w");
    manifest.optimizer_sha256 = Sha256Hex("o");
    ASSERT_THAT(store_.Commit(manifest), IsOk());
  }
  uint64_t Newest() {
    const auto found = store_.FindNewest();
    EXPECT_THAT(found, IsOk());
    return found.ok() && found->has_value() ? (*found)->version : 0;
  }

  TemporaryDirectory directory_;
  CheckpointStore store_ = *CheckpointStore::Open(directory_.path());
};

TEST_F(CheckpointStoreTest, AnEmptyDirectoryHasNothing) {
  EXPECT_FALSE(store_.HoldsResults("mnist"));
  EXPECT_EQ(Newest(), 0u);
}

TEST_F(CheckpointStoreTest, ADirectoryThatCannotBeReadIsNotAnEmptyOne) {
  Write(9);
  std::filesystem::rename(directory_ / "checkpoints", directory_ / "elsewhere");
  EXPECT_THAT(store_.FindNewest(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("cannot list")));
}

TEST_F(CheckpointStoreTest, TheNewestCommittedCheckpointIsFound) {
  Write(9);
  Write(10);
  ASSERT_THAT(store_.Prepare(11), IsOk());  // never committed
  EXPECT_EQ(Newest(), 10u);
  EXPECT_TRUE(store_.HoldsResults("mnist"));
}

TEST_F(CheckpointStoreTest, DamagedOnesArePassedOver) {
  for (const uint64_t version : {1, 2, 3, 4, 5}) Write(version);
  std::ofstream(store_.Directory(5) / "shard.safetensors", std::ios::app) << "x";  // longer
  std::ofstream(store_.Directory(4) / "shard.safetensors") << "weights OF 4";      // other bits
  ASSERT_THAT(RemoveTree(store_.Directory(3) / "shard.safetensors"), IsOk());
  std::ofstream(store_.Directory(2) / "manifest.json") << "{\"format\":";
  EXPECT_EQ(Newest(), 1u);
}

TEST_F(CheckpointStoreTest, WhenNoneIsUsableItIsAnErrorAndNotAFreshStart) {
  Write(1);
  std::ofstream(store_.Directory(1) / "shard.safetensors") << "short";
  EXPECT_THAT(store_.FindNewest(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("none of the 1 checkpoints")));
}

TEST_F(CheckpointStoreTest, OnlyTheNewestStay) {
  for (const uint64_t version : {1, 2, 10, 20}) Write(version);
  ASSERT_THAT(store_.Prune(2), IsOk());
  EXPECT_FALSE(std::filesystem::exists(store_.Directory(1)));
  EXPECT_FALSE(std::filesystem::exists(store_.Directory(2)));
  EXPECT_TRUE(std::filesystem::exists(store_.Directory(10)));
  EXPECT_EQ(Newest(), 20u);
}

TEST_F(CheckpointStoreTest, OneMayBeSpared) {
  for (const uint64_t version : {1, 2, 10, 20}) Write(version);
  ASSERT_THAT(store_.Prune(2, 1), IsOk());
  EXPECT_TRUE(std::filesystem::exists(store_.Directory(1)));
  EXPECT_FALSE(std::filesystem::exists(store_.Directory(2)));
  ASSERT_THAT(store_.Prune(1, 20), IsOk());
  EXPECT_FALSE(std::filesystem::exists(store_.Directory(1)));
  EXPECT_FALSE(std::filesystem::exists(store_.Directory(10)));
  EXPECT_EQ(Newest(), 20u);
}

TEST_F(CheckpointStoreTest, PreparingRemovesWhatAnEarlierAttemptLeft) {
  Write(7);
  ASSERT_THAT(store_.Prepare(7), IsOk());
  EXPECT_TRUE(std::filesystem::is_empty(store_.Directory(7)));
}

TEST_F(CheckpointStoreTest, ServedModelsAreResultsToo) {
  std::filesystem::create_directories(directory_ / "models/mnist");
  EXPECT_FALSE(store_.HoldsResults("mnist"));
  std::filesystem::create_directories(directory_ / "models/mnist/430");
  EXPECT_TRUE(store_.HoldsResults("mnist"));
}

TEST_F(CheckpointStoreTest, OneWriterAtATime) {
  EXPECT_THAT(CheckpointStore::Open(directory_.path()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another parameter server")));
}

TEST(CheckpointStoreOpenTest, ADirectoryThatCannotBeMadeIsAnErrorWithItsName) {
  TemporaryDirectory directory;
  std::ofstream(directory / "file") << "x";
  const auto store = CheckpointStore::Open(directory / "file");
  ASSERT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("file"));
}

}  // namespace
}  // namespace millrace
