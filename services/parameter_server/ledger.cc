#include "services/parameter_server/ledger.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/planted_bug.h"

namespace millrace {
namespace {

// Late reports of rounds older than this many are not compared any more.
constexpr size_t kPastRounds = 8;
// An evaluation is cut into about this many leases per worker, so that all end at about the same time.
constexpr uint32_t kEvaluationLeasesPerWorker = 4;
constexpr uint32_t kEvaluationLeaseMax = 16;  // units
// How many of its last leases tell a worker's speed: the middle one does, so that one hiccup says nothing.
constexpr size_t kSlotTimes = 3;

// The largest power of two that is at most `units`, at least 1.
uint32_t WidthOf(uint32_t units) { return std::bit_floor(std::max(1u, units)); }

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
  Schedule(now, actions);
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
  Schedule(now, actions);
  return actions;
}

LedgerActions Ledger::Heard(WorkerId worker, std::string waiting_for, absl::Time now) {
  LedgerActions actions;
  if (const auto found = workers_.find(worker); found != workers_.end()) {
    found->second.last_heard = now;
    found->second.waiting_for = std::move(waiting_for);
  }
  Schedule(now, actions);
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
    actions.warnings.push_back(
        absl::StrCat("ignored a report of ", found->second.name, " for lease ", report.lease_id(), ", which it does not hold"));
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
  Schedule(now, actions);
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
  Schedule(now, actions);
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

double Ledger::ShareOf(const Worker& worker) const {
  if (worker.slot_times.size() < kSlotTimes) return 1;
  std::vector<absl::Duration> sorted(worker.slot_times.begin(), worker.slot_times.end());
  std::sort(sorted.begin(), sorted.end());
  const double times = absl::FDivDuration(sorted[kSlotTimes / 2], train_times_.median());
  return times > limits_.slow_factor ? 1 / times : 1;
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
        worker.name, " differs from the result accepted before (checksum ", absl::Hex(result.checksum(), absl::kZeroPad16),
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

// --- Scheduling ---

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

void Ledger::Schedule(absl::Time now, LedgerActions& actions) {
  OpenRounds();
  std::vector<WorkerId> candidates;
  uint32_t live = 0;
  for (const auto& [id, worker] : workers_) {
    if (worker.leaving || worker.late || IsSilent(worker, now)) continue;
    ++live;
    if (IsCandidate(worker, now)) candidates.push_back(id);
  }
  // One lease for everyone before a second one for anyone.
  for (uint32_t held = 0; held < limits_.leases_per_worker; ++held) {
    for (const WorkerId id : candidates) {
      Worker& worker = workers_.at(id);
      if (worker.leases.size() > held) continue;
      for (size_t i = 0; i < open_.size(); ++i) {
        if (TryGrant(id, worker, i, live, now, actions)) break;
      }
    }
  }
}

// How many units of an open round this worker may take now; 0 for none.
uint32_t Ledger::LeaseWidth(WorkerId id, const Worker& worker, size_t open_index, uint32_t workers) const {
  const OpenRound& round = open_[open_index];
  const uint32_t units = round.state.units(), free = round.state.free_units();
  if (free == 0) return 0;
  const uint32_t held = LeasesOf(worker, round.state.id());
  for (size_t earlier = 0; earlier < open_index; ++earlier) {
    // Nobody waits for the next weights while there is work on these.
    if (open_[earlier].state.free_units() > 0) return 0;
  }
  // And leases that wait for weights must leave room for work that brings them: another worker's part of that may come
  // back at any time.
  const auto waits = [&](uint64_t id) { return !IsComputable(leases_.at(id).round()); };
  const auto waiting = std::count_if(worker.leases.begin(), worker.leases.end(), waits);
  if (!IsComputable(round.state.id()) && waiting + 1 >= limits_.leases_per_worker) return 0;
  if (!round.state.id().is_train()) {
    return std::min(kEvaluationLeaseMax, WidthOf(units / (kEvaluationLeasesPerWorker * workers)));
  }
  if (IsAsynchronous()) return workers == 1 ? std::bit_ceil(units) : WidthOf(units / workers);
  // Everyone's share is kept for them, however busy they still are with the step before...
  if (!round.served.contains(id)) {
    return workers == 1 ? std::bit_ceil(units) : WidthOf(static_cast<uint32_t>(units * ShareOf(worker) / workers));
  }
  // ... and what nobody's share covers goes to whoever has nothing left to do for the oldest step.
  if (open_index > 0 || held > 0) return 0;
  return WidthOf(free / workers);
}

bool Ledger::TryGrant(WorkerId id, Worker& worker, size_t open_index, uint32_t workers, absl::Time now,
                      LedgerActions& actions) {
  const uint32_t width = LeaseWidth(id, worker, open_index, workers);
  if (width == 0) return false;
  OpenRound& round = open_[open_index];
  std::vector<UnitRange> own;  // a late lease of its own is no work to give it again
  for (const uint64_t held : worker.leases) {
    if (leases_.at(held).round() == round.state.id()) own.push_back(leases_.at(held).range());
  }
  const std::optional<UnitRange> range = round.state.Take(next_lease_, width, own);
  if (!range.has_value()) return false;
  Lease lease{.message = {}, .worker = id};
  lease.message.set_id(next_lease_++);
  lease.message.set_kind(round.state.id().kind);
  lease.message.set_version(round.state.id().version);
  lease.message.set_begin(range->begin);
  lease.message.set_end(range->end);
  if (round.state.id().is_train()) {
    const uint64_t step = round.state.id().version;
    lease.message.set_staleness(static_cast<uint32_t>(step - WeightsVersionFor(plan_, step)));
    lease.message.set_newest(plan_.spec().asynchrony().unbounded());
  }
  actions.grants.push_back({id, lease.message});
  round.served.insert(id);
  worker.leases.insert(lease.message.id());
  leases_.emplace(lease.message.id(), std::move(lease));
  if (open_index == 0) current_since_ = std::min(current_since_, now);
  StartNextLease(worker, now);
  return true;
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
    return absl::StrCat(RoundName(*next_), ": the checkpoint of version ", *unsettled_.begin(), " is not committed yet");
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
    const std::string reason = worker.waiting_for.empty() ? "" : absl::StrCat(" (waiting for ", worker.waiting_for, ")");
    return absl::StrCat(what, " leased to ", worker.name, reason, holder->late ? ", late, " : ", ",
                        LastHeard(worker.last_heard, now));
  }
  if (workers_.empty()) return absl::StrCat(what, " has no worker: none is connected");
  return absl::StrCat(what, " is not leased yet: ", workers_.size(), " workers are busy");
}

}  // namespace millrace
