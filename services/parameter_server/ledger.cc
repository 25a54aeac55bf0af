#include "services/parameter_server/ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/planted_bug.h"

namespace millrace {
namespace {

// Late reports of rounds older than this many are not compared any more.
constexpr size_t kPastRounds = 8;

std::string Describe(const RoundId& round, UnitRange range) {
  return absl::StrCat(UnitsName(round, range.begin, range.end), " of ", RoundName(round));
}

std::string LastHeard(absl::Time last_heard, absl::Time now) {
  return absl::StrFormat("last heard %.1f s ago", absl::ToDoubleSeconds(now - last_heard));
}

}  // namespace

Ledger::Ledger(v1::JobPlan plan) : Ledger(std::move(plan), Limits()) {}

Ledger::Ledger(v1::JobPlan plan, Limits limits, std::vector<v1::Evaluation> validation)
    : plan_(std::move(plan)),
      limits_(limits),
      version_(plan_.start_version()),
      validation_(std::move(validation)),
      next_(FirstRound(plan_, validation_)),
      current_since_(absl::InfiniteFuture()),
      train_times_(limits.lease_shortest, limits.lease_first, limits.lease_factor),
      evaluation_times_(limits.lease_shortest, limits.lease_first, limits.lease_factor) {
  OpenRounds();
}

// --- Events ---

LedgerActions Ledger::WorkerJoined(WorkerId worker, std::string name, absl::Time now) {
  LedgerActions actions;
  Worker& joined = workers_[worker];
  joined.name = std::move(name);
  joined.last_heard = now;
  Schedule(now, actions, worker);
  return actions;
}

LedgerActions Ledger::WorkerLeft(WorkerId worker, absl::Time now) {
  LedgerActions actions;
  Remove(worker, "its connection ended", actions);
  Schedule(now, actions);
  return actions;
}

LedgerActions Ledger::WorkerLeaving(WorkerId worker, absl::Time now) {
  LedgerActions actions;
  if (const auto found = workers_.find(worker); found != workers_.end()) {
    found->second.leaving = true;
    found->second.last_heard = now;
  }
  Schedule(now, actions, worker);
  return actions;
}

LedgerActions Ledger::Heard(WorkerId worker, std::string waiting_for, absl::Time now) {
  LedgerActions actions;
  if (const auto found = workers_.find(worker); found != workers_.end()) {
    found->second.last_heard = now;
    found->second.waiting_for = std::move(waiting_for);
  }
  Schedule(now, actions, worker);
  return actions;
}

LedgerActions Ledger::Reported(WorkerId worker, const v1::Report& report, absl::Time now) {
  LedgerActions actions;
  const auto found = workers_.find(worker);
  if (found == workers_.end()) return actions;
  found->second.last_heard = now;
  const auto held = leases_.find(report.lease_id());
  if (held == leases_.end() || held->second.worker != worker) {
    ++counters_.stale_reports;
    actions.warnings.push_back(absl::StrCat("ignored a report of ", found->second.name, " for lease ",
                                            report.lease_id(), ", which it does not hold"));
    return actions;
  }
  const Lease lease = held->second;
  if (std::string fault = CheckReport(lease, report); !fault.empty()) {
    fault = absl::StrCat("report for ", Describe(lease.round(), lease.range()), ": ", fault);
    Remove(worker, fault, actions);
    actions.expelled.push_back({worker, std::move(fault)});
  } else {
    NoteTime(lease, found->second, now);
    AcceptResults(lease, report, found->second, actions);
    DropLease(report.lease_id());
    StartNextLease(found->second, now);
    CompleteRounds(now, actions);
  }
  Schedule(now, actions, worker);
  return actions;
}

LedgerActions Ledger::Declined(WorkerId worker, uint64_t lease, absl::Time now, bool weights_gone) {
  LedgerActions actions;
  const auto found = workers_.find(worker);
  if (found == workers_.end()) return actions;
  found->second.last_heard = now;
  const auto held = leases_.find(lease);
  if (held == leases_.end() || held->second.worker != worker) return actions;
  TakeBack(held->second, "was declined", actions);
  const RoundId round = held->second.round();
  DropLease(lease);
  if (weights_gone && !open_.empty() && open_.front().state.id() == round && IsOlderTest(round)) AbandonRound(actions);
  StartNextLease(found->second, now);
  found->second.paused_until = now + limits_.decline_pause;
  pause_ends_ = std::min(pause_ends_, found->second.paused_until);
  Schedule(now, actions, worker);
  return actions;
}

LedgerActions Ledger::BoundarySettled(uint64_t version, absl::Time now) {
  LedgerActions actions;
  unsettled_.erase(version);
  Schedule(now, actions);
  return actions;
}

LedgerActions Ledger::Tick(absl::Time now) {
  LedgerActions actions;
  for (auto& [id, lease] : leases_) {
    if (lease.late) continue;
    Worker& worker = workers_.at(lease.worker);
    const LeaseTimes& times = lease.round().is_train() ? train_times_ : evaluation_times_;
    const bool overdue = lease.started != absl::InfiniteFuture() &&
                         now - lease.started > times.LateAfter(lease.range().end - lease.range().begin);
    if (!IsSilent(worker, now) && !(overdue && AnyoneIdle(lease.round(), now))) continue;
    MarkLate(worker, absl::StrCat("is late, ", LastHeard(worker.last_heard, now)), actions);
  }
  Schedule(now, actions);
  return actions;
}

// --- Workers and leases ---

void Ledger::Remove(WorkerId worker, const std::string& why, LedgerActions& actions) {
  const auto found = workers_.find(worker);
  if (found == workers_.end()) return;
  while (!found->second.leases.empty()) {
    const uint64_t id = *found->second.leases.begin();
    TakeBack(leases_.at(id), absl::StrCat("is lost: ", why), actions);
    DropLease(id);
  }
  for (OpenRound& round : open_) round.served.erase(worker);
  workers_.erase(found);
}

void Ledger::TakeBack(const Lease& lease, const std::string& why, LedgerActions& actions) {
  if (kPlantedBug == PlantedBug::kLostRegrant) return;
  RoundState* round = FindRound(lease.round());
  if (round == nullptr || round->Release(lease.message.id(), lease.range()) == 0) return;
  ++counters_.regranted_leases;
  actions.warnings.push_back(absl::StrCat("lease of ", workers_.at(lease.worker).name, " for ",
                                          Describe(lease.round(), lease.range()), " ", why));
}

void Ledger::MarkLate(Worker& worker, const std::string& why, LedgerActions& actions) {
  worker.late = true;
  for (const uint64_t id : worker.leases) {
    Lease& lease = leases_.at(id);
    if (std::exchange(lease.late, true)) continue;
    TakeBack(lease, why, actions);
  }
}

void Ledger::DropLease(uint64_t id) {
  const auto lease = leases_.find(id);
  Worker& worker = workers_.at(lease->second.worker);
  worker.leases.erase(id);
  if (worker.leases.empty()) worker.late = false;
  leases_.erase(lease);
}

void Ledger::NoteTime(const Lease& lease, Worker& worker, absl::Time now) {
  if (lease.started == absl::InfiniteFuture()) return;
  const uint32_t units = lease.range().end - lease.range().begin;
  if (!lease.round().is_train()) return evaluation_times_.Add(now - lease.started, units);
  train_times_.Add(now - lease.started, units);
  worker.slot_times.push_back((now - lease.started) / units);
  if (worker.slot_times.size() > kSlotTimes) worker.slot_times.pop_front();
}

void Ledger::StartNextLease(const Worker& worker, absl::Time now) {
  if (open_.empty()) return;
  Lease* next = nullptr;
  for (const uint64_t id : worker.leases) {
    Lease& lease = leases_.at(id);
    if (lease.late || !IsComputable(lease.round())) continue;
    if (lease.started != absl::InfiniteFuture()) return;  // one at a time
    if (next == nullptr || lease.message.version() < next->message.version()) next = &lease;
  }
  if (next != nullptr) next->started = now;
}

uint32_t Ledger::LeasesOf(const Worker& worker, const RoundId& round) const {
  return static_cast<uint32_t>(std::count_if(worker.leases.begin(), worker.leases.end(),
                                             [&](uint64_t id) { return leases_.at(id).round() == round; }));
}

// --- Results ---

std::string Ledger::CheckReport(const Lease& lease, const v1::Report& report) const {
  const UnitRange range = lease.range();
  std::set<uint32_t> seen;
  for (const v1::UnitResult& result : report.results()) {
    if (result.unit() < range.begin || result.unit() >= range.end || !seen.insert(result.unit()).second) {
      return absl::StrCat("unit ", result.unit(), " is not in the lease, or twice in the report");
    }
    const uint32_t samples = UnitSamples(plan_, lease.round(), result.unit());
    if (result.samples() != samples || result.correct() > samples) {
      return absl::StrCat("unit ", result.unit(), " has ", samples, " samples, not ", result.samples(), " with ",
                          result.correct(), " correct");
    }
  }
  if (seen.size() == range.end - range.begin) return "";
  return absl::StrCat("only ", seen.size(), " of ", range.end - range.begin, " units");
}

void Ledger::AcceptResults(const Lease& lease, const v1::Report& report, Worker& worker, LedgerActions& actions) {
  RoundState* round = FindRound(lease.round());
  for (const v1::UnitResult& result : report.results()) {
    // A round too old to be remembered: the result is a duplicate that cannot be compared.
    const auto verdict = round == nullptr ? RoundState::Verdict::kDuplicate : round->Accept(result);
    if (verdict == RoundState::Verdict::kAccepted) {
      if (lease.round().is_train()) worker.samples += result.samples();
      continue;
    }
    ++counters_.duplicate_results;
    // On whatever weights a worker has, no two results are alike.
    if (verdict != RoundState::Verdict::kMismatch || plan_.spec().asynchrony().unbounded()) continue;
    ++counters_.checksum_mismatches;
    actions.corruptions.push_back(absl::StrCat(
        UnitsName(lease.round(), result.unit(), result.unit() + 1), " of ", RoundName(lease.round()), " computed by ",
        worker.name, " differs from the result accepted before (checksum ",
        absl::Hex(result.checksum(), absl::kZeroPad16),
        "): one of the two workers computed it wrongly, or with another LibTorch, instruction set or thread count"));
  }
}

RoundState* Ledger::FindRound(const RoundId& id) {
  for (OpenRound& round : open_) {
    if (round.state.id() == id) return &round.state;
  }
  for (RoundState& round : past_) {
    if (round.id() == id) return &round;
  }
  return nullptr;
}

void Ledger::CompleteRounds(absl::Time now, LedgerActions& actions) {
  while (!open_.empty() && open_.front().state.complete()) {
    RoundState& round = open_.front().state;
    LedgerActions::CompletedRound& completed = actions.completed.emplace_back();
    completed = {.id = round.id(), .sums = round.Sums(), .checksums = {}, .took = now - std::min(current_since_, now)};
    if (round.id().is_train()) {
      completed.checksums = round.Checksums();
      version_ = round.id().version + 1;
      if (IsCheckpointBoundary(plan_, version_)) {
        unsettled_.insert(version_);
        actions.boundaries.push_back(version_);
      }
    }
    if (round.id().kind == v1::Lease::KIND_VALIDATION) {
      validation_.push_back(MakeEvaluation(plan_, round.id(), round.Sums()));
      next_ = NextRound(plan_, newest_, validation_);
    }
    past_.push_back(std::move(round));
    if (past_.size() > kPastRounds) past_.pop_front();
    open_.pop_front();
    OpenRounds();
    current_since_ = absl::InfiniteFuture();
    if (open_.empty()) continue;
    for (const auto& [id, worker] : workers_) {
      StartNextLease(worker, now);
      if (LeasesOf(worker, open_.front().state.id()) > 0) current_since_ = now;
    }
  }
}

void Ledger::AbandonRound(LedgerActions& actions) {
  const RoundId round = open_.front().state.id();
  std::vector<uint64_t> leases;
  for (const auto& [id, lease] : leases_) {
    if (lease.round() == round) leases.push_back(id);
  }
  for (const uint64_t id : leases) DropLease(id);
  open_.pop_front();
  actions.warnings.push_back(absl::StrCat(RoundName(round), " is given up: there is no checkpoint of it to be had"));
}

// --- Questions ---

std::optional<RoundId> Ledger::current() const {
  if (open_.empty()) return std::nullopt;
  return open_.front().state.id();
}

std::vector<Ledger::WorkerView> Ledger::Workers() const {
  std::vector<WorkerView> views;
  for (const auto& [id, worker] : workers_) {
    std::string doing = worker.leaving ? "leaving" : "waiting for a lease";
    if (!worker.waiting_for.empty()) {
      doing = absl::StrCat("waiting for ", worker.waiting_for);
    } else if (!worker.leases.empty()) {
      const Lease& lease = leases_.at(*worker.leases.begin());
      doing = absl::StrCat("computing ", Describe(lease.round(), lease.range()));
    }
    views.push_back({id, worker.name, std::move(doing), worker.last_heard, worker.samples});
  }
  return views;
}

std::string Ledger::WaitingFor(absl::Time now) const {
  if (finished()) return "";
  if (open_.empty()) {
    return absl::StrCat(RoundName(*next_), ": the checkpoint of version ", *unsettled_.begin(),
                        " is not committed yet");
  }
  const RoundState& round = open_.front().state;
  const uint32_t unit = round.FirstMissing();
  const std::string what = absl::StrCat(RoundName(round.id()), ": ", UnitsName(round.id(), unit, unit + 1));
  const Lease* holder = nullptr;
  for (const auto& [id, lease] : leases_) {
    if (!(lease.round() == round.id()) || unit < lease.range().begin || unit >= lease.range().end) continue;
    if (holder == nullptr || holder->late) holder = &lease;
  }
  if (holder != nullptr) {
    const Worker& worker = workers_.at(holder->worker);
    const std::string reason =
        worker.waiting_for.empty() ? "" : absl::StrCat(" (waiting for ", worker.waiting_for, ")");
    return absl::StrCat(what, " leased to ", worker.name, reason, holder->late ? ", late, " : ", ",
                        LastHeard(worker.last_heard, now));
  }
  if (workers_.empty()) return absl::StrCat(what, " has no worker: none is connected");
  return absl::StrCat(what, " is not leased yet: ", workers_.size(), " workers are busy");
}

}  // namespace millrace
