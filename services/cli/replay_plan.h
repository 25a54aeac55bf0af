// What it takes to make one step of a job again, decided from what its checkpoints say. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/run_fingerprint.h"
#include "millrace/v1/job.pb.h"
#include "services/cli/checkpoint_records.h"

namespace millrace {

struct ReplayPlan {
  uint64_t start_version = 0;  // the newest checkpoint up to the step; 0: the job's beginning
  // The job, so that a checkpoint is due right after the step. Of a job with staleness it is the job's next one, since
  // its checkpoints have a say in its bits.
  v1::JobSpec spec;
  StepChecksums recorded{};       // of the steps from start_version up to the step, as far as they are known
  RunFingerprint recorded_under;  // what else the recorded bits depend on
  v1::DatasetInfo dataset;
};

// `records` are those of the job, by version. OUT_OF_RANGE for a step or slot that the job did not make, that is not
// recorded yet, or whose checkpoint is gone; FAILED_PRECONDITION for a job that is not reproducible; NOT_FOUND if
// nothing was recorded; DATA_LOSS if the record is damaged.
absl::StatusOr<ReplayPlan> MakeReplayPlan(const std::vector<CheckpointRecord>& records, uint64_t step, uint32_t slot);

}  // namespace millrace
