// The slot ledger: decides who computes what, and knows at any moment what the job waits for (DESIGN D3).
//
// A pure state machine. Events go in, each with the time at which it happened; actions come out, to be carried out in
// order. It never calls back, has no clock and no threads, and the same events give the same actions.
//
//   Ledger ledger(plan);
//   LedgerActions actions = ledger.WorkerJoined(1, "worker-0", now);
//   for (const auto& grant : actions.grants) Send(grant.worker, grant.lease);
//
// What holds, whatever workers do:
// - Every unit of every round is accepted exactly once; rounds complete in the order of rounds.h. Only the test of an
//   older version, the best one, is given up if its weights cannot be had any more.
// - A range that is granted is a node of the slot tree. A worker holds at most `leases_per_worker` leases.
// - While a worker is alive and reports or declines what it is granted, the job goes on: a lease goes back at once when
//   its worker leaves, and its units are granted to another when its worker is silent, or when it is late and another
//   worker has nothing to do. A late worker's report still counts if it comes first; until then it is granted no more.
// - A worker that is much slower than the others gets a smaller share.
// - Training does not pass one boundary (a checkpoint version) before the boundary before it is settled, so a shard
//   keeps at most two snapshots.
//
// With backup workers, so many workers more than are needed may have nothing of the steps that are open: they compute
// again, at once, what others are computing, the oldest lease first. The first result counts and the second is compared
// with it, so a slow worker costs no more than a fast one's time. This is what the backup workers of Chen et al.
// (Revisiting Distributed Synchronous SGD, 2016, arXiv:1604.00981) are for; theirs compute other samples and the
// slowest results are dropped, which makes the weights depend on who was slow. Here they are the same bits as without.
//
// A worker may get a lease of an older version after one of a newer version (when another worker is lost): it computes
// the older one first, since the newer weights depend on it.
//
// With staleness (schedule.h) several steps can be computed at once. Then no share of a step is kept for anyone: a slow
// worker holds up a step and not those after it, as far as the staleness goes.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/lease_times.h"
#include "services/parameter_server/round_state.h"
#include "services/parameter_server/rounds.h"
#include "services/parameter_server/schedule.h"

namespace millrace {

// One connection of one worker. A worker that reconnects is another one: what its earlier life held is fenced off.
using WorkerId = uint64_t;

struct LedgerActions {
  struct Grant {
    WorkerId worker;
    v1::Lease lease;
  };
  struct CompletedRound {
    RoundId id;
    RoundSums sums;
    std::vector<uint64_t> checksums;  // of a train round, by slot
    absl::Duration took;              // from when it was the oldest incomplete round and had a lease
  };
  struct Expulsion {
    WorkerId worker;  // is forgotten already; close its connection
    std::string reason;
  };

  std::vector<Grant> grants;
  std::vector<CompletedRound> completed;
  std::vector<uint64_t> boundaries;      // versions reached at which a checkpoint is due
  std::vector<Expulsion> expelled;       // workers that broke the protocol
  std::vector<std::string> warnings;     // one line each
  std::vector<std::string> corruptions;  // one line each: the same unit gave two different results
};

class Ledger {
 public:
  struct Limits {
    uint32_t leases_per_worker = 2;                           // one to compute, one to prefetch for
    absl::Duration lease_shortest = absl::Milliseconds(200);  // below it is noise
    absl::Duration lease_first = absl::Seconds(30);           // until the first report shows how long a unit takes
    double lease_factor = 3;                                  // times the median
    double slow_factor = 2;                                   // of the median: a slower worker gets a smaller share
    absl::Duration silence = absl::Seconds(3);                // without a word from a worker: its leases are late
    absl::Duration decline_pause = absl::Milliseconds(100);   // before a worker that declined is granted more
    uint32_t backup_workers = 0;                              // how many may compute what others are computing
  };
  struct Counters {
    uint64_t regranted_leases = 0;  // taken back from a late or lost worker, or declined, before they were done
    uint64_t duplicate_results = 0;
    uint64_t checksum_mismatches = 0;
    uint64_t stale_reports = 0;  // of leases the worker does not hold
    uint64_t backup_leases = 0;
  };
  struct WorkerView {
    WorkerId id;
    std::string name;
    std::string doing;
    absl::Time last_heard;
    uint64_t samples;  // trained since it joined
  };

  // The plan must have passed ResolveJobPlan. Training begins as soon as a worker joins.
  explicit Ledger(v1::JobPlan plan);
  // `validation` is the history before plan.start_version.
  Ledger(v1::JobPlan plan, Limits limits, std::vector<v1::Evaluation> validation = {});

  // --- Events. Those of a worker that is not there are ignored. ---
  LedgerActions WorkerJoined(WorkerId worker, std::string name, absl::Time now);
  LedgerActions WorkerLeft(WorkerId worker, absl::Time now);     // its connection is gone
  LedgerActions WorkerLeaving(WorkerId worker, absl::Time now);  // it finishes what it holds and wants no more
  LedgerActions Heard(WorkerId worker, std::string waiting_for, absl::Time now);
  LedgerActions Reported(WorkerId worker, const v1::Report& report, absl::Time now);
  // `weights_gone`: the shards do not have the lease's version, and will not.
  LedgerActions Declined(WorkerId worker, uint64_t lease, absl::Time now, bool weights_gone = false);
  LedgerActions BoundarySettled(uint64_t version, absl::Time now);  // committed or given up
  LedgerActions Tick(absl::Time now);                               // several times a second

  // --- Questions ---
  bool finished() const { return !next_.has_value() && open_.empty(); }
  uint64_t version() const { return version_; }  // steps applied
  // The oldest incomplete round; nullopt when finished, or held by a boundary.
  std::optional<RoundId> current() const;
  const Counters& counters() const { return counters_; }
  std::vector<WorkerView> Workers() const;
  // "step 812: slot 5 leased to worker-2, last heard 3.1 s ago"; empty when finished.
  std::string WaitingFor(absl::Time now) const;

 private:
  struct Lease {
    v1::Lease message;
    WorkerId worker;
    absl::Time started = absl::InfiniteFuture();  // when its turn came
    bool late = false;
    uint64_t backs_up = 0;  // the lease whose range this one computes again; 0 for none

    RoundId round() const { return {message.kind(), message.version()}; }
    UnitRange range() const { return {message.begin(), message.end()}; }
  };
  struct OpenRound {
    RoundState state;
    std::set<WorkerId> served;  // have had their share
  };
  struct Worker {
    std::string name;
    std::string waiting_for;  // in its own words; empty while it computes
    absl::Time last_heard;
    absl::Time paused_until = absl::InfinitePast();
    bool leaving = false;
    uint64_t samples = 0;
    std::set<uint64_t> leases;
    bool late = false;                      // with some lease: all are late then, since it computes one after the other
    std::deque<absl::Duration> slot_times;  // of its last few train leases, per slot
  };

  bool IsSilent(const Worker& worker, absl::Time now) const { return now - worker.last_heard > limits_.silence; }
  RoundState* FindRound(const RoundId& id);  // open or recently completed; else null
  bool IsAsynchronous() const { return StepsAhead(plan_) > 0; }
  // The weights of the open round are there, or will be once the work that is leased is done.
  bool IsComputable(const RoundId& round) const;
  uint32_t LeasesOf(const Worker& worker, const RoundId& round) const;

  bool IsCandidate(const Worker& worker, absl::Time now) const;
  // Whether a worker could begin at once what another one is late with.
  bool AnyoneIdle(const RoundId& round, absl::Time now) const;
  void NoteTime(const Lease& lease, Worker& worker, absl::Time now);
  // What part of an equal share the worker gets, at most 1.
  double ShareOf(const Worker& worker) const;
  void MarkLate(Worker& worker, const std::string& why, LedgerActions& actions);

  // ledger_schedule.cc
  struct Pass {
    absl::Time now;
    LedgerActions& actions;
    uint32_t sharers = 0;  // how many workers share a round's units; counted when first needed
  };
  // What other workers than the one an event is about can be granted depends on this and on the time alone.
  struct FreeWork {
    RoundId oldest;
    uint64_t changes = 0;
    bool operator==(const FreeWork&) const = default;
  };
  // `changed`: the worker that the event is about. Leaving and falling silent open nothing to others by themselves.
  void Schedule(absl::Time now, LedgerActions& actions, std::optional<WorkerId> changed = std::nullopt);
  void GrantWork(Pass& pass, std::optional<WorkerId> changed);
  FreeWork WhatIsFree() const;
  uint32_t CountSharers(absl::Time now) const;
  void ScheduleBackups(absl::Time now, LedgerActions& actions);
  // The first granted lease of the oldest round that another worker holds, is not backed up, and has results to come.
  const Lease* OldestToBackUp(WorkerId worker) const;
  bool MayTake(WorkerId id, const Worker& worker, size_t open_index) const;
  uint32_t LeaseWidth(WorkerId id, const Worker& worker, size_t open_index, uint32_t sharers) const;
  bool TryGrant(WorkerId id, Worker& worker, size_t open_index, Pass& pass);
  void Grant(WorkerId id, Worker& worker, Lease lease, absl::Time now, LedgerActions& actions);
  bool IsOlderTest(const RoundId& round) const {
    return round.kind == v1::Lease::KIND_TEST && round.version < version_;
  }
  bool MayOpen(const RoundId& round) const;
  void OpenRounds();
  void CompleteRounds(absl::Time now, LedgerActions& actions);
  void AbandonRound(LedgerActions& actions);  // the only open one

  std::string CheckReport(const Lease& lease, const v1::Report& report) const;
  void AcceptResults(const Lease& lease, const v1::Report& report, Worker& worker, LedgerActions& actions);
  void StartNextLease(const Worker& worker, absl::Time now);
  void TakeBack(const Lease& lease, const std::string& why, LedgerActions& actions);
  void DropLease(uint64_t id);
  void Remove(WorkerId worker, const std::string& why, LedgerActions& actions);

  // How many of its last leases tell a worker's speed: the middle one does, so that one hiccup says nothing.
  static constexpr size_t kSlotTimes = 3;

  const v1::JobPlan plan_;
  const Limits limits_;
  uint64_t version_;
  uint64_t next_lease_ = 1;
  std::vector<v1::Evaluation> validation_;  // the history
  // The round to open next; changed, before it is opened, by the result of a validation that is still open.
  std::optional<RoundId> next_;
  RoundId newest_;                // that was opened
  std::deque<OpenRound> open_;    // the oldest incomplete round, and some after it
  std::deque<RoundState> past_;   // the last few complete ones, to compare late duplicates with
  absl::Time current_since_;      // since when open_.front() has been worked at
  std::set<uint64_t> unsettled_;  // boundaries reached, not settled
  std::map<WorkerId, Worker> workers_;
  std::optional<FreeWork> useless_;  // free work of which nobody could be granted any, until a pause ends at
  absl::Time pause_ends_ = absl::InfiniteFuture();
  std::map<uint64_t, Lease> leases_;
  LeaseTimes train_times_;
  LeaseTimes evaluation_times_;
  Counters counters_;
};

}  // namespace millrace
