#include "services/cli/replay_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

// Where training begins. A step before every checkpoint that is kept can be reached from the job's beginning, but only
// the first checkpoint of all has recorded the way.
absl::StatusOr<uint64_t> StartVersion(const std::vector<CheckpointRecord>& records, uint64_t step,
                                      const SlotChecksums& recorded) {
  uint64_t start = 0;
  for (const CheckpointRecord& record : records) {
    if (record.version <= step) start = record.version;
  }
  if (start > 0 || recorded.first_step == 0) return start;
  return absl::OutOfRangeError(
      absl::StrCat("--step ", step, " lies before the oldest checkpoint that is kept, of version ",
                   records.front().version, " (`millrace train --keep-checkpoints` says how many are)"));
}

}  // namespace

absl::StatusOr<ReplayPlan> MakeReplayPlan(const std::vector<CheckpointRecord>& records, uint64_t step, uint32_t slot) {
  if (records.empty()) return absl::NotFoundError("the job has no checkpoint, so nothing is recorded yet");
  const auto record = std::find_if(records.begin(), records.end(), [&](const auto& r) { return r.version > step; });
  if (record == records.end()) {
    return absl::OutOfRangeError(absl::StrCat("--step ", step, " is not recorded: the newest checkpoint is of version ",
                                              records.back().version, ", so that the last recorded step is ",
                                              records.back().version - 1));
  }
  ReplayPlan plan{
      .spec = record->plan.spec(), .recorded_under = record->fingerprint, .dataset = record->plan.dataset()};
  const v1::AsynchronySpec& asynchrony = plan.spec.asynchrony();
  if (asynchrony.unbounded()) {
    return absl::FailedPreconditionError(
        "the job was trained with --staleness unbounded: a step was computed on whatever weights a worker had, so that "
        "no step can be made again");
  }
  if (slot >= plan.spec.slots()) {
    return absl::OutOfRangeError(
        absl::StrCat("--slot ", slot, ": the job has ", plan.spec.slots(), " slots, 0 to ", plan.spec.slots() - 1));
  }
  MILLRACE_RETURN_IF_ERROR(record->checksums.status());
  const SlotChecksums& checksums = *record->checksums;
  MILLRACE_ASSIGN_OR_RETURN(plan.start_version, StartVersion(records, step, checksums));
  if (!checksums.Has(step) || checksums.slots != plan.spec.slots()) {
    return absl::OutOfRangeError(absl::StrCat(
        "--step ", step, " is not recorded: the checkpoint that held it is not kept any more; that of version ",
        record->version, " has steps ", checksums.first_step, " to ", checksums.end_step() - 1));
  }
  for (uint64_t at = std::max(plan.start_version, checksums.first_step); at <= step; ++at) {
    const auto slots = checksums.Of(at);
    plan.recorded[at].assign(slots.begin(), slots.end());
  }
  if (asynchrony.staleness() == 0) plan.spec.set_checkpoint_steps(step + 1);
  return plan;
}

}  // namespace millrace
