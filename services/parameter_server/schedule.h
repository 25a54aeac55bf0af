// Which version of a job means what: pure functions of its plan, so that every part of the job, and a part that was
// restarted, comes to the same answer without asking.
//
// Version v is the weights after v steps; step t reads version t and makes t + 1. A plan's steps_per_epoch and
// batch_size are at least 1.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/limits.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Steps in one pass over the train split; the last one may be short.
inline uint64_t StepsPerEpoch(uint64_t train_count, uint64_t batch_size) {
  return (train_count + batch_size - 1) / batch_size;
}

// Completed epochs at `version`; also the epoch that step `version` belongs to.
inline uint64_t EpochOf(const v1::JobPlan& plan, uint64_t version) { return version / plan.steps_per_epoch(); }

// An epoch has just been completed: the version is evaluated and exported.
inline bool IsEpochEnd(const v1::JobPlan& plan, uint64_t version) {
  return version > 0 && version % plan.steps_per_epoch() == 0;
}

inline bool IsFinalVersion(const v1::JobPlan& plan, uint64_t version) { return version == plan.total_steps(); }

// Shards keep a snapshot of this version until its checkpoint is committed or given up.
inline bool IsCheckpointBoundary(const v1::JobPlan& plan, uint64_t version) {
  if (version == 0) return false;
  const uint64_t every = plan.spec().checkpoint_steps();
  return IsEpochEnd(plan, version) || IsFinalVersion(plan, version) || (every > 0 && version % every == 0);
}

// The newest checkpoint boundary up to `version`, or 0. Every run can begin there, so nothing reaches back beyond it.
inline uint64_t LastBoundary(const v1::JobPlan& plan, uint64_t version) {
  const uint64_t every = plan.spec().checkpoint_steps();
  const uint64_t epoch = version - version % plan.steps_per_epoch();
  return every == 0 ? epoch : std::max(epoch, version - version % every);
}

// How many steps beyond the oldest incomplete one may be computed.
inline uint64_t StepsAhead(const v1::JobPlan& plan) {
  return plan.spec().asynchrony().unbounded() ? kUnboundedSteps : plan.spec().asynchrony().staleness();
}

// The job was asynchronous and diverged.
inline bool IsSynchronousAgain(const v1::JobSpec& spec) {
  return spec.has_asynchrony() && spec.asynchrony().staleness() == 0 && !spec.asynchrony().unbounded();
}

// The weights that `step` is computed on: exactly this version or, with unbounded staleness, this one or any newer.
inline uint64_t WeightsVersionFor(const v1::JobPlan& plan, uint64_t step) {
  const uint64_t boundary = LastBoundary(plan, step), ahead = StepsAhead(plan);
  return step - boundary > ahead ? step - ahead : boundary;
}

// How many versions before the newest every shard can still hand out. A worker may be lost after one shard has all of
// its gradient and another has not, or after all have and the coordinator has not heard of it. Its slots are computed
// again then, on the same weights, `staleness` versions before their step; by that time the shards may be as many steps
// further as the ledger has steps open.
inline uint64_t RetainedVersions(const v1::JobPlan& plan) { return 2 + 2 * plan.spec().asynchrony().staleness(); }

// Samples of a whole step: batch_size, or what is left for the last step of an epoch.
inline uint64_t StepSamples(const v1::JobPlan& plan, uint64_t step) {
  const uint64_t first = step % plan.steps_per_epoch() * plan.spec().batch_size();
  return std::min<uint64_t>(plan.spec().batch_size(), plan.dataset().train_count() - first);
}

}  // namespace millrace
