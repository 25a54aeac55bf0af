// What the checkpoints of a training run tell of the bits of its steps, as read from its output directory. The
// parameter server's checkpoint_manifest.h says what else is in a manifest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/run_fingerprint.h"
#include "common/slot_checksums.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

struct CheckpointRecord {
  uint64_t version = 0;
  v1::JobPlan plan;  // the job as it was when the checkpoint was written
  RunFingerprint fingerprint;
  // Of the steps before `version`. NOT_FOUND if none were recorded, DATA_LOSS if they are not what the manifest says.
  absl::StatusOr<SlotChecksums> checksums;
};

// By version, of every checkpoint in `out` that is committed; one whose manifest cannot be read is left out, as it is
// when the job is resumed.
std::vector<CheckpointRecord> ReadCheckpointRecords(const std::filesystem::path& out);

// The checksums of each step's slots, by step.
using StepChecksums = std::map<uint64_t, std::vector<uint64_t>>;
StepChecksums MergeChecksums(const std::vector<CheckpointRecord>& records);

struct SlotDifference {
  uint64_t step = 0;
  uint32_t slot = 0;
  uint64_t before = 0;  // checksums
  uint64_t after = 0;
};
struct SlotComparison {
  uint64_t steps = 0;  // that both have
  uint64_t slots = 0;  // of those steps
  uint64_t differences = 0;
  std::optional<SlotDifference> first{};
};
SlotComparison CompareSlots(const StepChecksums& before, const StepChecksums& after);

}  // namespace millrace
