#include "services/parameter_server/round_state.h"

#include <algorithm>
#include <bit>

#include "common/networks.h"
#include "common/planted_bug.h"
#include "services/parameter_server/schedule.h"

namespace millrace {

v1::Evaluation MakeEvaluation(const v1::JobPlan& plan, const RoundId& round, const RoundSums& sums) {
  v1::Evaluation evaluation;
  evaluation.set_version(round.version);
  evaluation.set_epoch(EpochOf(plan, round.version));
  evaluation.set_samples(sums.samples);
  const double samples = static_cast<double>(std::max<uint64_t>(1, sums.samples));
  evaluation.set_loss(sums.loss / samples);
  if (Classifies(plan.network())) evaluation.set_accuracy(static_cast<double>(sums.correct) / samples);
  return evaluation;
}

RoundState::RoundState(RoundId id, uint32_t units) : id_(id), units_(units), free_(units) {}

bool RoundState::IsFree(UnitRange range) const {
  return std::all_of(units_.begin() + range.begin, units_.begin() + range.end,
                     [](const Unit& unit) { return !unit.done && unit.lease == 0; });
}

std::optional<UnitRange> RoundState::Take(uint64_t lease, uint32_t width, std::span<const UnitRange> avoid) {
  if (free_ == 0) return std::nullopt;
  while (first_free_ < units() && !IsFree({first_free_, first_free_ + 1})) ++first_free_;
  for (; width > 0; width /= 2) {
    for (uint64_t begin = first_free_ / width * width; begin < units(); begin += width) {
      const UnitRange range{static_cast<uint32_t>(begin),
                            static_cast<uint32_t>(std::min<uint64_t>(begin + width, units()))};
      const bool avoided = std::any_of(avoid.begin(), avoid.end(), [&](const UnitRange& other) {
        return other.begin < range.end && range.begin < other.end;
      });
      if (avoided || !IsFree(range)) continue;
      for (uint32_t unit = range.begin; unit < range.end; ++unit) units_[unit].lease = lease;
      free_ -= range.end - range.begin;
      ++changes_;
      return range;
    }
  }
  return std::nullopt;
}

uint32_t RoundState::Release(uint64_t lease, UnitRange range) {
  uint32_t released = 0;
  for (uint32_t unit = range.begin; unit < range.end; ++unit) {
    if (units_[unit].done || units_[unit].lease != lease) continue;
    units_[unit].lease = 0;
    first_free_ = std::min(first_free_, unit);
    ++released;
  }
  free_ += released;
  if (released > 0) ++changes_;
  return released;
}

RoundState::Verdict RoundState::Accept(const v1::UnitResult& result) {
  Unit& unit = units_[result.unit()];
  if (unit.done && kPlantedBug != PlantedBug::kDoubleCount) {
    // Compared as bits: a loss of NaN equals itself here.
    const bool same = unit.checksum == result.checksum() && unit.samples == result.samples() &&
                      unit.correct == result.correct() && unit.visits == result.visits() &&
                      std::bit_cast<uint64_t>(unit.loss) == std::bit_cast<uint64_t>(result.loss_sum());
    return same ? Verdict::kDuplicate : Verdict::kMismatch;
  }
  if (unit.lease == 0) {
    --free_;
    ++changes_;
  }
  unit = {.lease = unit.lease,
          .done = true,
          .samples = result.samples(),
          .correct = result.correct(),
          .loss = result.loss_sum(),
          .checksum = result.checksum(),
          .visits = result.visits()};
  ++done_;
  return Verdict::kAccepted;
}

RoundSums RoundState::Sums() const {
  RoundSums sums;
  for (const Unit& unit : units_) {
    sums.samples += unit.samples;
    sums.loss += unit.loss;
    sums.correct += unit.correct;
    sums.visits += unit.visits;
  }
  return sums;
}

std::vector<uint64_t> RoundState::Checksums() const {
  std::vector<uint64_t> checksums;
  checksums.reserve(units_.size());
  for (const Unit& unit : units_) checksums.push_back(unit.checksum);
  return checksums;
}

bool RoundState::IsMissing(UnitRange range) const {
  return std::any_of(units_.begin() + range.begin, units_.begin() + range.end,
                     [](const Unit& unit) { return !unit.done; });
}

uint32_t RoundState::FirstMissing() const {
  const auto unit = std::find_if(units_.begin(), units_.end(), [](const Unit& u) { return !u.done; });
  return static_cast<uint32_t>(unit - units_.begin());
}

}  // namespace millrace
