// The ledger against workers that join, leave, die, freeze, dawdle, decline and repeat themselves, in thousands of
// random schedules. A failing schedule prints its seed; MILLRACE_SIMULATION_SEED=<seed> runs that one alone.
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/random.h"
#include "common/tensor/slot_tree.h"
#include "gtest/gtest.h"
#include "services/parameter_server/ledger.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

// What computing a unit gives: a pure function, as it is for real workers.
v1::UnitResult Compute(const v1::JobPlan& plan, const RoundId& round, uint32_t unit) {
  v1::UnitResult result;
  result.set_unit(unit);
  result.set_samples(UnitSamples(plan, round, unit));
  PhiloxStream random(round.version * 3 + round.kind, unit);
  result.set_loss_sum(random.NextUniform() * 1e6 / 3);
  result.set_correct(result.samples() == 0 ? 0 : random.NextUint32() % (result.samples() + 1));
  result.set_checksum(random.NextUint32());
  return result;
}

class Simulation {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed, 0), plan_(RandomPlan()), ledger_(plan_, {.backup_workers = Random(3)}) {
    applied_ = plan_.start_version();
    expected_ = FirstRound(plan_, history_);
  }

  // The job must finish soon after the chaos ends.
  void Run() {
    for (int i = 0; i < 400 && !ledger_.finished() && !::testing::Test::HasFailure(); ++i) Step(true);
    for (int i = 0; i < 4000 && !ledger_.finished() && !::testing::Test::HasFailure(); ++i) {
      if (workers_.empty()) Join();
      for (auto& [id, worker] : workers_) worker.frozen = false;
      Step(false);
    }
    EXPECT_TRUE(ledger_.finished()) << "stuck: " << ledger_.WaitingFor(now_);
    EXPECT_FALSE(expected_.has_value()) << "rounds are missing";
    EXPECT_TRUE(IsLastVersion(plan_, ledger_.version(), history_));
    EXPECT_EQ(ledger_.counters().checksum_mismatches, 0u);
  }

 private:
  struct Job {
    v1::Lease lease;
    bool computed = false;
    absl::Time ready;  // when the report goes out
  };
  struct Worker {
    std::vector<Job> jobs;
    bool frozen = false;
    bool leaving = false;
  };

  uint32_t Random(uint32_t bound) { return random_.NextUint32() % bound; }
  bool Chance(double p) { return random_.NextUniform() < p; }

  v1::JobPlan RandomPlan() {
    TestPlan plan{.slots = 1 + Random(13),
                  .batch_size = 1 + Random(20),
                  .epochs = 1 + Random(3),
                  .checkpoint_steps = Random(3),
                  .train_count = 1 + Random(60),
                  .validation_count = Random(30),
                  .test_count = Random(30),
                  .evaluation_batch_size = 1 + Random(8)};
    if (Chance(0.2)) plan.start_version = plan.Build().steps_per_epoch();
    v1::JobPlan built = plan.Build();
    if (Chance(0.5)) built.mutable_spec()->mutable_early_stopping()->set_patience(1 + Random(2));
    return built;
  }

  void Step(bool chaos) {
    now_ += absl::Milliseconds(1 + Random(chaos ? 400 : 60));
    if (chaos && Chance(0.10) && workers_.size() < 5) Join();
    std::vector<WorkerId> ids;
    for (const auto& [id, worker] : workers_) ids.push_back(id);
    for (const WorkerId id : ids) {
      if (chaos) Disturb(id);
      if (workers_.contains(id) && !workers_[id].frozen) Work(id, chaos);
    }
    Settle(chaos);
    Apply(ledger_.Tick(now_));
  }

  void Join() {
    const WorkerId id = next_worker_++;
    workers_[id];
    Apply(ledger_.WorkerJoined(id, absl::StrCat("worker-", id), now_));
  }

  void Disturb(WorkerId id) {
    if (Chance(0.02)) {  // kill -9; what it pushed stays pushed
      workers_.erase(id);
      return Apply(ledger_.WorkerLeft(id, now_));
    }
    Worker& worker = workers_[id];
    if (Chance(0.03)) worker.frozen = !worker.frozen;  // SIGSTOP, SIGCONT
    if (!worker.frozen && Chance(0.02)) {
      worker.leaving = true;
      Apply(ledger_.WorkerLeaving(id, now_));
    }
  }

  // A worker's turn: a heartbeat, and its oldest lease a bit further.
  void Work(WorkerId id, bool chaos) {
    Apply(ledger_.Heard(id, "", now_));
    Worker& worker = workers_[id];
    if (worker.jobs.empty()) {
      if (worker.leaving) {
        workers_.erase(id);
        Apply(ledger_.WorkerLeft(id, now_));
      }
      return;
    }
    const auto oldest = std::min_element(worker.jobs.begin(), worker.jobs.end(), [](const Job& a, const Job& b) {
      return a.lease.version() < b.lease.version();
    });
    Job& job = *oldest;
    const RoundId round{job.lease.kind(), job.lease.version()};
    // Shards keep the two versions before the newest: a worker may die after its push and before its report.
    // The best version, which is tested at the end, comes from its checkpoint.
    const bool committed = round.kind == v1::Lease::KIND_TEST;
    const bool gone = applied_ > round.version + RetainedVersions(plan_) && !committed;
    EXPECT_FALSE(gone && expected_ == round) << "the weights of an incomplete " << RoundName(round) << " are gone";
    const bool cannot_start = gone || (worker.leaving && applied_ < round.version);
    if (!job.computed && (cannot_start || (chaos && Chance(0.02)))) {
      const uint64_t lease = job.lease.id();
      worker.jobs.erase(oldest);
      return Apply(ledger_.Declined(id, lease, now_));
    }
    if (!job.computed) {
      if (applied_ < round.version) return;  // waits for weights
      job.computed = true;
      job.ready = now_ + absl::Milliseconds(chaos && Chance(0.05) ? 40000 : Random(300));
      if (round.is_train()) Push(job.lease);
    }
    if (now_ < job.ready && chaos) return;
    v1::Report report;
    report.set_lease_id(job.lease.id());
    for (uint32_t unit = job.lease.begin(); unit < job.lease.end(); ++unit) {
      *report.add_results() = Compute(plan_, round, unit);
    }
    worker.jobs.erase(oldest);
    Apply(ledger_.Reported(id, report, now_));
    if (chaos && Chance(0.05) && workers_.contains(id)) Apply(ledger_.Reported(id, report, now_));  // says it twice
  }

  // The shards: a step is applied when all of its slots are there.
  void Push(const v1::Lease& lease) {
    if (lease.version() != applied_) return;
    for (uint32_t slot = lease.begin(); slot < lease.end(); ++slot) pushed_.insert(slot);
    if (pushed_.size() < plan_.spec().slots()) return;
    pushed_.clear();
    ++applied_;
    if (IsCheckpointBoundary(plan_, applied_)) snapshots_.insert(applied_);
    EXPECT_LE(snapshots_.size(), 2u) << "shards would hold too many snapshots";
  }

  void Settle(bool chaos) {
    if (reached_.empty() || (chaos && !Chance(0.2))) return;
    const uint64_t version = *reached_.begin();
    reached_.erase(version);
    snapshots_.erase(version);
    Apply(ledger_.BoundarySettled(version, now_));
  }

  void Apply(const LedgerActions& actions) {
    EXPECT_TRUE(actions.expelled.empty());
    EXPECT_TRUE(actions.corruptions.empty());
    for (const LedgerActions::CompletedRound& round : actions.completed) CheckCompleted(round);
    for (const uint64_t version : actions.boundaries) {
      EXPECT_TRUE(IsCheckpointBoundary(plan_, version));
      reached_.insert(version);
    }
    for (const LedgerActions::Grant& grant : actions.grants) {
      ASSERT_TRUE(workers_.contains(grant.worker));
      Worker& worker = workers_[grant.worker];
      EXPECT_FALSE(worker.leaving);
      EXPECT_LT(grant.lease.begin(), grant.lease.end());
      if (grant.lease.kind() == v1::Lease::KIND_TRAIN) {
        EXPECT_TRUE(IsSlotNode({grant.lease.begin(), grant.lease.end()}, plan_.spec().slots()));
      }
      worker.jobs.push_back({grant.lease, false, now_});
      EXPECT_LE(worker.jobs.size(), 2u);
    }
  }

  // Rounds complete in order, each unit counted exactly once, added in order of unit number.
  void CheckCompleted(const LedgerActions::CompletedRound& round) {
    ASSERT_TRUE(expected_.has_value());
    EXPECT_EQ(RoundName(round.id), RoundName(*expected_));
    RoundSums sums;
    for (uint32_t unit = 0; unit < RoundUnits(plan_, *expected_); ++unit) {
      const v1::UnitResult result = Compute(plan_, *expected_, unit);
      sums.samples += result.samples();
      sums.loss += result.loss_sum();
      sums.correct += result.correct();
    }
    EXPECT_EQ(round.sums.samples, sums.samples);
    EXPECT_EQ(round.sums.correct, sums.correct);
    EXPECT_EQ(round.sums.loss, sums.loss);
    if (expected_->kind == v1::Lease::KIND_VALIDATION) {
      history_.push_back(MakeEvaluation(plan_, *expected_, sums));
    }
    expected_ = NextRound(plan_, *expected_, history_);
  }

  PhiloxStream random_;
  const v1::JobPlan plan_;
  Ledger ledger_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<WorkerId, Worker> workers_;
  WorkerId next_worker_ = 1;
  uint64_t applied_ = 0;          // version of the shards' weights
  std::set<uint32_t> pushed_;     // slots of step applied_
  std::set<uint64_t> snapshots_;  // boundaries the shards hold
  std::set<uint64_t> reached_;    // boundaries the ledger announced, not settled
  std::vector<v1::Evaluation> history_;
  std::optional<RoundId> expected_;
};

TEST(LedgerSimulationTest, AnyScheduleEndsWithEveryUnitCountedOnce) {
  uint64_t first = 0, count = 3000;
  if (const char* seed = std::getenv("MILLRACE_SIMULATION_SEED")) {
    ASSERT_TRUE(absl::SimpleAtoi(seed, &first));
    count = 1;
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(absl::StrCat("MILLRACE_SIMULATION_SEED=", seed));
    Simulation(seed).Run();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace millrace
