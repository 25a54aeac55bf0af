#include "services/worker/epoch_ahead.h"

#include <utility>

namespace millrace {

EpochAhead::Change EpochAhead::Accept(const v1::Lease& lease, const std::vector<BatchKey>& units) {
  Change change;
  for (const BatchKey& unit : units) {
    if (guessed_.erase(unit) == 0) change.ask.push_back(unit);
  }
  if (lease.kind() == v1::Lease::KIND_TRAIN) {
    if (lease.version() > guessed_step_) change.forget = TakeGuesses();
    if (lease.version() < step_) return change;  // of another worker that was lost
    if (lease.version() > step_) slots_.clear();
    step_ = lease.version();
    for (uint32_t slot = lease.begin(); slot < lease.end(); ++slot) slots_.insert(slot);
  } else if (lease.version() > step_ && lease.version() < total_steps_ && lease.version() != guessed_step_) {
    change.forget = TakeGuesses();
    GuessStep(lease.version());
    change.ask.insert(change.ask.end(), guessed_.begin(), guessed_.end());
  }
  return change;
}

void EpochAhead::GuessStep(uint64_t step) {
  guessed_step_ = step;
  for (const uint32_t slot : slots_) {
    guessed_.insert({v1::SPLIT_TRAIN, step / steps_per_epoch_, step % steps_per_epoch_, slot});
  }
}

std::vector<BatchKey> EpochAhead::TakeGuesses() {
  const std::set<BatchKey> guessed = std::exchange(guessed_, {});
  return {guessed.begin(), guessed.end()};
}

}  // namespace millrace
