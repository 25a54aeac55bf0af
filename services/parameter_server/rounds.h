// The order of a job's work, as pure functions of its plan.
//
// A round is work that must be complete before the weights may move on: the slots of one train step, or the units of
// one evaluation of a split at one version. Rounds follow each other in a fixed sequence:
//   step 0, step 1, ... step n-1, validation at version n, step n, ... validation and test at the last version, test at
//   the best one if that is another
// Which version is the last and which the best may depend on the validations before (model_selection.h): on their
// results, and on nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "millrace/v1/coordinator.pb.h"

namespace millrace {

struct RoundId {
  v1::Lease::Kind kind = v1::Lease::KIND_TRAIN;
  uint64_t version = 0;  // the weights it reads; for training also the step

  bool is_train() const { return kind == v1::Lease::KIND_TRAIN; }
  bool operator==(const RoundId&) const = default;
};

// "step 812", "validation at version 469", "test at version 4690"
std::string RoundName(const RoundId& round);
// "slot 5" or "slots [4, 8)" of a train round; "unit 3" or "units [2, 4)" of an evaluation.
std::string UnitsName(const RoundId& round, uint32_t begin, uint32_t end);

// The results of the job's validations so far, oldest first.
using ValidationHistory = std::span<const v1::Evaluation>;

// `version` is the one the job ends with: its last, or that of a validation after which it stops early.
bool IsLastVersion(const v1::JobPlan& plan, uint64_t version, ValidationHistory history = {});

// nullopt when there is nothing to do. A resumed job repeats the evaluation of the version it starts from; `history` is
// what there is before that.
std::optional<RoundId> FirstRound(const v1::JobPlan& plan, ValidationHistory history = {});
// nullopt after the last. What comes after a validation is certain when `history` has its result.
std::optional<RoundId> NextRound(const v1::JobPlan& plan, const RoundId& round, ValidationHistory history = {});

// How many units the round has: the job's slots, or the evaluation batches of the split.
uint32_t RoundUnits(const v1::JobPlan& plan, const RoundId& round);
// Samples in one unit; a short last batch leaves some slots smaller, or empty.
uint32_t UnitSamples(const v1::JobPlan& plan, const RoundId& round, uint32_t unit);

}  // namespace millrace
