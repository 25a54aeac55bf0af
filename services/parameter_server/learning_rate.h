// The learning rate of every step of a job: a pure function of its plan, so that every shard, and one that was
// restarted, applies a step with the same rate without asking.
//
// The schedules are those of PyTorch's torch.optim.lr_scheduler when they are stepped once per optimizer step:
//   constant   ConstantLR with factor 1
//   step       StepLR(step_size = steps, gamma)
//   cosine     CosineAnnealingLR(T_max = steps after the warm-up, eta_min = final_learning_rate)
//   one cycle  OneCycleLR(max_lr = learning_rate, pct_start, div_factor = 25, final_div_factor, cycle_momentum = False)
// A warm-up of w steps before one of the first three is LinearLR(start_factor = 1 / (w + 1), total_iters = w), chained
// by SequentialLR: step 0 has the (w + 1)th part of the rate, step w all of it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// INVALID_ARGUMENT names the field, its value and the limit, also for a field that the kind of schedule does not use.
absl::Status CheckSchedule(const v1::LearningRateSchedule& schedule, double learning_rate);

// True if the rate of an early step depends on how many steps the job has: more epochs are another job then.
bool DependsOnTotalSteps(const v1::LearningRateSchedule& schedule);

// Of step `step`; after the last step its rate. The plan's spec must be valid.
double LearningRateAt(const v1::JobPlan& plan, uint64_t step);

}  // namespace millrace
