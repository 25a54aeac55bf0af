#include "tests/simulation/disk.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/log.h"
#include "gtest/gtest.h"
#include "services/parameter_server/checkpoint_store.h"
#include "services/parameter_server/schedule.h"
#include "services/parameter_server/shard_checkpoint.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace::simulation {
namespace {

constexpr uint32_t kShards = 2;
constexpr uint64_t kShardElements = 64;

std::vector<float> WeightsOf(uint64_t version) {
  return std::vector<float>(kShardElements, static_cast<float>(version));
}

CheckpointIdentity IdentityOf(uint64_t version) {
  return {version, kShards * kShardElements, TestPlan().Build().spec().optimizer()};
}

// A world with a disk, on which processes run to their ends.
class DiskTest : public ::testing::Test {
 protected:
  DiskTest() { ConfigureLogging("simulation", LogLevel::kNone, LogFormat::kText); }

  struct Machine {
    Machine(uint64_t seed, StackPool* stacks) : world(seed, stacks, false), disk(&world) {}
    World world;
    Disk disk;
  };

  // False if it was killed.
  static bool Run(Machine& machine, const std::function<void(FileSystem&)>& body) {
    const std::shared_ptr<Process> process = Process::Start(&machine.world, "writer");
    const std::unique_ptr<FileSystem> files = machine.disk.Mount(process);
    process->Spawn([&] { body(*files); });
    while (machine.world.Step()) {
    }
    const bool survived = process->alive();
    process->Kill();
    return survived;
  }

  // As the shards and the checkpoint writer do it.
  static absl::Status Write(CheckpointStore& store, FileSystem& files, uint64_t version) {
    CheckpointManifest manifest;
    manifest.version = version;
    manifest.plan = TestPlan().Build();
    absl::Status status = store.Prepare(version);
    for (uint32_t shard = 0; status.ok() && shard < kShards; ++shard) {
      const std::string name = ShardFileName(shard, kShards);
      const auto written = WriteShardCheckpoint((store.Directory(version) / name).string(), IdentityOf(version),
                                                {shard * kShardElements, (shard + 1) * kShardElements},
                                                WeightsOf(version), {.step = version, .tensors = {}}, files);
      status = written.status();
      if (written.ok()) manifest.files.push_back({name, written->bytes, written->sha256});
    }
    manifest.weights_sha256 = manifest.optimizer_sha256 = std::string(64, '0');
    return status.ok() ? store.Commit(manifest) : status;
  }

  StackPool stacks_;
};

class CommitCrashTest : public DiskTest, public ::testing::WithParamInterface<bool> {};

// Every call of two commits and the pruning after them, killed in the middle; with and without a power failure.
TEST_P(CommitCrashTest, AnyPrefixOfTheWritesOfACommitLoadsTheVersionBeforeOrThisOne) {
  const bool power_failure = GetParam();
  uint64_t killed = 0, found_first = 0, found_second = 0, found_none = 0;
  for (uint64_t call = 1;; ++call) {
    bool survived = false;
    for (uint64_t seed = 0; seed < (power_failure ? 30 : 3); ++seed) {
      Machine machine(call * 1000 + seed, &stacks_);
      machine.disk.KillAt(call);
      uint64_t committed = 0;
      survived = Run(machine, [&](FileSystem& files) {
        absl::StatusOr<CheckpointStore> store = CheckpointStore::Open("/output", files);
        for (uint64_t version = 1; store.ok() && version <= 2; ++version) {
          if (!Write(*store, files, version).ok()) return;
          committed = version;
          if (!store->Prune(1).ok()) return;
        }
      });
      machine.disk.KillAt(0);
      if (power_failure) machine.disk.PowerFailure();
      killed += !survived;

      uint64_t found = 0;
      const bool looked = Run(machine, [&](FileSystem& files) {
        absl::StatusOr<CheckpointStore> store = CheckpointStore::Open("/output", files);
        ASSERT_TRUE(store.ok()) << store.status();
        const auto newest = store->FindNewest();
        ASSERT_TRUE(newest.ok()) << newest.status();
        if (!newest->has_value()) return;
        found = (*newest)->version;
        const auto state = ReadShardCheckpoint(store->Directory(found).string(), IdentityOf(found),
                                               {0, kShards * kShardElements}, files);
        ASSERT_TRUE(state.ok()) << state.status();
        EXPECT_EQ(state->weights, std::vector<float>(kShards * kShardElements, static_cast<float>(found)));
      });
      ASSERT_TRUE(looked);
      EXPECT_GE(found, committed) << "call " << call << ", seed " << seed;
      EXPECT_LE(found, committed + 1) << "call " << call << ", seed " << seed;
      found_none += found == 0;
      found_first += found == 1;
      found_second += found == 2;
      if (HasFailure()) return;
    }
    if (survived) break;
  }
  EXPECT_GT(killed, 40u);
  EXPECT_GT(found_none, 0u);
  EXPECT_GT(found_first, 0u);
  EXPECT_GT(found_second, 0u);
}
INSTANTIATE_TEST_SUITE_P(Crashes, CommitCrashTest, ::testing::Bool());

TEST_F(DiskTest, WhatWasNotSyncedMayBeForgotten) {
  int kept = 0, torn = 0, gone = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Machine machine(seed, &stacks_);
    Run(machine, [&](FileSystem& files) {
      auto file = files.Create("/f");
      ASSERT_TRUE(file.ok());
      EXPECT_TRUE((*file)->Append(std::as_bytes(std::span(std::string_view("contents")))).ok());
    });
    machine.disk.PowerFailure();
    Run(machine, [&](FileSystem& files) {
      const auto contents = ReadFile("/f", 100, files);
      gone += !contents.ok();
      kept += contents.ok() && *contents == "contents";
      torn += contents.ok() && *contents != "contents";
    });
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(torn, 0);
  EXPECT_GT(gone, 0);
}

TEST_F(DiskTest, WhatWasSyncedStays) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Machine machine(seed, &stacks_);
    Run(machine, [&](FileSystem& files) { EXPECT_TRUE(WriteFileAtomically("/f", "contents", files).ok()); });
    machine.disk.PowerFailure();
    Run(machine, [&](FileSystem& files) { EXPECT_EQ(ReadFile("/f", 100, files).value_or("gone"), "contents"); });
  }
}

}  // namespace
}  // namespace millrace::simulation
