// What to ask the data service for across an evaluation.
//
// Leases of the step after an evaluation come only when the evaluation is complete, since its weights must not be gone
// before. Without a guess no batch would be on its way then, and every epoch would begin with a wait for the data
// service. So, with the evaluation's batches, those are asked for that the worker will need if it gets the same slots
// as in the step before. A wrong guess costs the data service some batches and nothing else.
//
// Pure. Threads: one at a time.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "common/batch_key.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

class EpochAhead {
 public:
  struct Change {
    std::vector<BatchKey> ask, forget;
  };

  // `plan` needs steps_per_epoch and total_steps.
  explicit EpochAhead(const v1::JobPlan& plan)
      : steps_per_epoch_(plan.steps_per_epoch()), total_steps_(plan.total_steps()) {}

  // A lease has come, which needs `units`.
  Change Accept(const v1::Lease& lease, const std::vector<BatchKey>& units);

  // What was guessed and never came, when there will be no more leases.
  std::vector<BatchKey> TakeGuesses();

 private:
  void GuessStep(uint64_t step);

  const uint64_t steps_per_epoch_;
  const uint64_t total_steps_;
  uint64_t step_ = 0;         // the newest that there was a lease for
  std::set<uint32_t> slots_;  // this worker's slots of it
  uint64_t guessed_step_ = 0;
  std::set<BatchKey> guessed_;  // asked for, and of no lease yet
};

}  // namespace millrace
