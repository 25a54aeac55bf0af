// Counts, while it happens, which samples were trained: for each part of an epoch between two checkpoints, and for each
// whole epoch, the samples and the sum of their visits (services/data/visits.h defines a visit's hash). What they
// should be, the data service says later.
//
// A job that goes back to a checkpoint goes on with the sum that the checkpoint keeps of its epoch: the steps in
// between are made again and count once. An epoch whose beginning is not known, of a checkpoint without that sum, is
// checked in its parts only.
//
// Pure: no clock, no threads. Threads: one at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/round_state.h"

namespace millrace {

class VisitAudit {
 public:
  static constexpr size_t kChecksShown = 5;

  // A run begins at plan.start_version(). `epoch_so_far` is what the checkpoint there kept.
  void BeginRun(const v1::JobPlan& plan, const std::optional<v1::VisitCheck>& epoch_so_far);

  // Steps come in order. Returns the checks that are due, without what is expected: of the part of the epoch that ends
  // at a checkpoint boundary, and of the whole epoch at its end.
  std::vector<v1::VisitCheck> StepCompleted(const v1::JobPlan& plan, uint64_t step, const RoundSums& sums);

  // What a checkpoint of `version`, one of the last boundaries, is to keep; nullopt at an epoch's end, and if unknown.
  std::optional<v1::VisitCheck> EpochSoFar(uint64_t version) const;

  // A check that was due has been answered. Returns whether it came out equal.
  bool Answered(const v1::VisitCheck& check);

  const std::deque<v1::VisitCheck>& checks() const { return checks_; }  // the newest, oldest first
  uint64_t mismatches() const { return mismatches_; }

 private:
  void Show(const v1::VisitCheck& check);

  v1::VisitCheck part_;                             // since the last boundary
  std::optional<v1::VisitCheck> whole_;             // since the epoch's begin, if known
  std::map<uint64_t, v1::VisitCheck> at_boundary_;  // whole_ at the last boundaries
  std::deque<v1::VisitCheck> checks_;
  uint64_t mismatches_ = 0;
};

}  // namespace millrace
