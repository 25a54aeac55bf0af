// Who computes what of one round, and what came of it. Part of the ledger; knows neither workers nor time.
//
// A unit is free, held by one lease, or done. Ranges that are handed out are nodes of the slot tree (common/tensor/
// slot_tree.h): a worker may add the gradients of such a range and push one sum.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/rounds.h"

namespace millrace {

struct UnitRange {
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Sums over all units of a round, added in order of unit number, so that they too are reproducible to the bit.
struct RoundSums {
  uint64_t samples = 0;
  double loss = 0;  // nats
  uint64_t correct = 0;
  uint64_t visits = 0;  // mod 2^64
};

// What the sums of an evaluation's units make of its version.
v1::Evaluation MakeEvaluation(const v1::JobPlan& plan, const RoundId& round, const RoundSums& sums);

class RoundState {
 public:
  // units >= 1
  RoundState(RoundId id, uint32_t units);

  const RoundId& id() const { return id_; }
  uint32_t units() const { return static_cast<uint32_t>(units_.size()); }
  uint32_t free_units() const { return free_; }
  // Grows whenever free_units() changes.
  uint64_t changes() const { return changes_; }
  bool complete() const { return done_ == units(); }

  // Gives `lease` (not 0) the first aligned range of `width` units (a power of two; shorter only at the end of the
  // round) that is free and does not touch `avoid`; a narrower one if there is none so wide.
  std::optional<UnitRange> Take(uint64_t lease, uint32_t width, std::span<const UnitRange> avoid);

  // Units that `lease` holds become free. Returns how many.
  uint32_t Release(uint64_t lease, UnitRange range);

  enum class Verdict { kAccepted, kDuplicate, kMismatch };
  // The first result of a unit counts. A later one is compared with it: the same samples on the same weights give the
  // same bits, so a difference is a corruption. Requires result.unit < units().
  Verdict Accept(const v1::UnitResult& result);

  RoundSums Sums() const;
  // Of what was accepted, by unit.
  std::vector<uint64_t> Checksums() const;

  // Some unit of the range is not done.
  bool IsMissing(UnitRange range) const;
  // The first unit that is not done. Requires a round that is not complete.
  uint32_t FirstMissing() const;

 private:
  struct Unit {
    uint64_t lease = 0;
    bool done = false;
    uint32_t samples = 0;
    uint32_t correct = 0;
    double loss = 0;
    uint64_t checksum = 0;
    uint64_t visits = 0;
  };

  bool IsFree(UnitRange range) const;

  const RoundId id_;
  std::vector<Unit> units_;
  uint32_t free_;
  uint64_t changes_ = 0;
  uint32_t done_ = 0;
  uint32_t first_free_ = 0;  // no unit before this one is free
};

}  // namespace millrace
