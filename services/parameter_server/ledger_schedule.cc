// Which worker is granted what, and which rounds are open for it: the scheduling half of Ledger.
#include <algorithm>
#include <bit>
#include <utility>

#include "services/parameter_server/ledger.h"

namespace millrace {
namespace {

// An evaluation is cut into about this many leases per worker, so that all end at about the same time.
constexpr uint32_t kEvaluationLeasesPerWorker = 4;
constexpr uint32_t kEvaluationLeaseMax = 16;  // units

// The largest power of two that is at most `units`, at least 1.
uint32_t WidthOf(uint32_t units) { return std::bit_floor(std::max(1u, units)); }

}  // namespace

double Ledger::ShareOf(const Worker& worker) const {
  if (worker.slot_times.size() < kSlotTimes) return 1;
  std::vector<absl::Duration> sorted(worker.slot_times.begin(), worker.slot_times.end());
  std::sort(sorted.begin(), sorted.end());
  const double times = absl::FDivDuration(sorted[kSlotTimes / 2], train_times_.median());
  return times > limits_.slow_factor ? 1 / times : 1;
}

bool Ledger::IsComputable(const RoundId& round) const {
  if (round == open_.front().state.id()) return true;
  return round.is_train() && WeightsVersionFor(plan_, round.version) <= version_;
}

// Workers would go back and forth between the newest version and the best one if both were tested at once.
bool Ledger::MayOpen(const RoundId& round) const {
  if (IsOlderTest(round)) return open_.empty();
  if (!round.is_train()) return true;
  // If an evaluation and the step after it were open together, the step could be complete first, and the weights the
  // evaluation needs be gone.
  const auto evaluates = [](const OpenRound& open) { return !open.state.id().is_train(); };
  if (std::any_of(open_.begin(), open_.end(), evaluates)) return false;
  size_t boundaries = unsettled_.size();
  for (uint64_t version = version_ + 1; version <= round.version; ++version) {
    if (IsCheckpointBoundary(plan_, version)) ++boundaries;
  }
  return boundaries <= 1;
}

void Ledger::OpenRounds() {
  // What can be computed, and one more to prefetch for.
  while (open_.size() < 2 + StepsAhead(plan_) && next_.has_value() && MayOpen(*next_)) {
    open_.push_back({RoundState(*next_, RoundUnits(plan_, *next_)), {}});
    newest_ = *next_;
    next_ = NextRound(plan_, newest_, validation_);
  }
}

bool Ledger::IsCandidate(const Worker& worker, absl::Time now) const {
  return !worker.leaving && !worker.late && !IsSilent(worker, now) && now >= worker.paused_until;
}

bool Ledger::AnyoneIdle(const RoundId& round, absl::Time now) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
    const Worker& worker = entry.second;
    return IsCandidate(worker, now) && worker.leases.size() < limits_.leases_per_worker && LeasesOf(worker, round) == 0;
  });
}

void Ledger::Schedule(absl::Time now, LedgerActions& actions, std::optional<WorkerId> changed) {
  OpenRounds();
  const auto has_free = [](const OpenRound& open) { return open.state.free_units() > 0; };
  if (std::any_of(open_.begin(), open_.end(), has_free)) {
    Pass pass{now, actions};
    GrantWork(pass, changed);
  }
  ScheduleBackups(now, actions);
}

Ledger::FreeWork Ledger::WhatIsFree() const {
  FreeWork work{.oldest = open_.front().state.id()};
  for (const OpenRound& open : open_) work.changes += open.state.changes();
  return work;
}

// Every candidate in turn, one lease for everyone before a second one for anyone. With many workers nearly always
// nobody but the one that the event is about can be granted anything: the others hold as much as they may. So as long
// as the free work is what it was when they were last tried in vain, they are not looked at. (One worker's grants make
// less work free, which helps nobody, unless nothing is left of a round: then the rounds after it are next.)
void Ledger::GrantWork(Pass& pass, std::optional<WorkerId> changed) {
  bool everyone = useless_ != WhatIsFree() || pass.now >= pause_ends_;
  if (!everyone && !changed.has_value()) return;
  const bool all_tried = everyone;
  bool granted = false;
  for (uint32_t held = 0; held < limits_.leases_per_worker; ++held) {
    for (auto entry = everyone ? workers_.begin() : workers_.find(*changed); entry != workers_.end(); ++entry) {
      auto& [id, worker] = *entry;
      if (worker.leases.size() <= held && IsCandidate(worker, pass.now)) {
        for (size_t i = 0; i < open_.size(); ++i) {
          if (!TryGrant(id, worker, i, pass)) continue;
          granted = true;
          everyone |= open_[i].state.free_units() == 0;
          break;
        }
      }
      if (!everyone) break;
    }
  }
  useless_.reset();
  if (everyone && granted) return;  // there may be more for those tried before
  useless_ = WhatIsFree();
  if (!all_tried) return;
  pause_ends_ = absl::InfiniteFuture();
  for (const auto& [id, worker] : workers_) {
    if (worker.paused_until > pass.now) pause_ends_ = std::min(pause_ends_, worker.paused_until);
  }
}

uint32_t Ledger::CountSharers(absl::Time now) const {
  const auto live = std::count_if(workers_.begin(), workers_.end(), [&](const auto& entry) {
    return !entry.second.leaving && !entry.second.late && !IsSilent(entry.second, now);
  });
  const auto count = static_cast<uint32_t>(live);
  return std::max(1u, count - std::min(count, limits_.backup_workers));
}

void Ledger::ScheduleBackups(absl::Time now, LedgerActions& actions) {
  if (limits_.backup_workers == 0 || open_.empty()) return;
  const RoundId oldest = open_.front().state.id();
  // One that still computes what nobody waits for any more is none that could help.
  const auto backups = std::count_if(leases_.begin(), leases_.end(), [&](const auto& entry) {
    return entry.second.backs_up != 0 && entry.second.round() == oldest;
  });
  uint32_t left = limits_.backup_workers - std::min(limits_.backup_workers, static_cast<uint32_t>(backups));
  for (auto entry = workers_.begin(); entry != workers_.end() && left > 0; ++entry) {
    auto& [id, worker] = *entry;
    // What it holds of later steps waits for this one.
    const bool free = worker.leases.size() < limits_.leases_per_worker && LeasesOf(worker, oldest) == 0;
    if (!free || !IsCandidate(worker, now)) continue;
    const Lease* const original = OldestToBackUp(id);
    if (original == nullptr) return;
    Lease backup{.message = original->message, .worker = id, .backs_up = original->message.id()};
    ++counters_.backup_leases;
    --left;
    Grant(id, worker, std::move(backup), now, actions);
  }
}

const Ledger::Lease* Ledger::OldestToBackUp(WorkerId worker) const {
  std::set<uint64_t> backed_up;
  for (const auto& [id, lease] : leases_) backed_up.insert(lease.backs_up);
  const RoundState& round = open_.front().state;
  for (const auto& [id, lease] : leases_) {
    // What is late has been taken back and is granted as any other work.
    if (lease.worker == worker || lease.late || lease.backs_up != 0 || backed_up.contains(id)) continue;
    // Its holder may not have begun: a slow one is still at an older step, that others have brought.
    if (lease.round() == round.id() && round.IsMissing(lease.range())) return &lease;
  }
  return nullptr;
}

// Some of an open round. Depends neither on the time nor on other workers.
bool Ledger::MayTake(WorkerId id, const Worker& worker, size_t open_index) const {
  const OpenRound& round = open_[open_index];
  if (round.state.free_units() == 0) return false;
  for (size_t earlier = 0; earlier < open_index; ++earlier) {
    // Nobody waits for the next weights while there is work on these.
    if (open_[earlier].state.free_units() > 0) return false;
  }
  // And leases that wait for weights must leave room for work that brings them: another worker's part of that may come
  // back at any time.
  const auto waits = [&](uint64_t lease) { return !IsComputable(leases_.at(lease).round()); };
  const auto waiting = std::count_if(worker.leases.begin(), worker.leases.end(), waits);
  if (!IsComputable(round.state.id()) && waiting + 1 >= limits_.leases_per_worker) return false;
  if (!round.state.id().is_train() || IsAsynchronous()) return true;
  // Everyone's share is kept for them, however busy they still are with the step before, and what nobody's share covers
  // goes to whoever has nothing left to do for the oldest step.
  return !round.served.contains(id) || (open_index == 0 && LeasesOf(worker, round.state.id()) == 0);
}

// How many units a worker that may take some gets, at least 1.
uint32_t Ledger::LeaseWidth(WorkerId id, const Worker& worker, size_t open_index, uint32_t sharers) const {
  const OpenRound& round = open_[open_index];
  const uint32_t units = round.state.units();
  if (!round.state.id().is_train()) {
    return std::min(kEvaluationLeaseMax, WidthOf(units / (kEvaluationLeasesPerWorker * sharers)));
  }
  if (IsAsynchronous()) return sharers == 1 ? std::bit_ceil(units) : WidthOf(units / sharers);
  if (round.served.contains(id)) return WidthOf(round.state.free_units() / sharers);
  return sharers == 1 ? std::bit_ceil(units) : WidthOf(static_cast<uint32_t>(units * ShareOf(worker) / sharers));
}

bool Ledger::TryGrant(WorkerId id, Worker& worker, size_t open_index, Pass& pass) {
  if (!MayTake(id, worker, open_index)) return false;
  if (pass.sharers == 0) pass.sharers = CountSharers(pass.now);
  const uint32_t width = LeaseWidth(id, worker, open_index, pass.sharers);
  OpenRound& round = open_[open_index];
  std::vector<UnitRange> own;  // a late lease of its own is no work to give it again
  for (const uint64_t held : worker.leases) {
    if (leases_.at(held).round() == round.state.id()) own.push_back(leases_.at(held).range());
  }
  const std::optional<UnitRange> range = round.state.Take(next_lease_, width, own);
  if (!range.has_value()) return false;
  Lease lease{.message = {}, .worker = id};
  lease.message.set_kind(round.state.id().kind);
  lease.message.set_version(round.state.id().version);
  lease.message.set_begin(range->begin);
  lease.message.set_end(range->end);
  if (round.state.id().is_train()) {
    const uint64_t step = round.state.id().version;
    lease.message.set_staleness(static_cast<uint32_t>(step - WeightsVersionFor(plan_, step)));
    lease.message.set_newest(plan_.spec().asynchrony().unbounded());
  }
  round.served.insert(id);
  if (open_index == 0) current_since_ = std::min(current_since_, pass.now);
  Grant(id, worker, std::move(lease), pass.now, pass.actions);
  return true;
}

void Ledger::Grant(WorkerId id, Worker& worker, Lease lease, absl::Time now, LedgerActions& actions) {
  const uint64_t number = next_lease_++;
  lease.message.set_id(number);
  actions.grants.push_back({id, lease.message});
  worker.leases.insert(number);
  leases_.emplace(number, std::move(lease));
  StartNextLease(worker, now);
}

}  // namespace millrace
