// The same events give the same actions, whatever makes the ledger fast: digests of its action streams under random
// events, recorded from a ledger that looked at every worker on every event. A change of what the ledger decides
// changes them, and is recorded anew on purpose: the message of the failure has the new digest.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "common/random.h"
#include "gtest/gtest.h"
#include "services/parameter_server/ledger.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

class RandomEvents {
 public:
  // Up to `workers_max` at a time; each takes its leases in the order of their versions, or declines, or dawdles.
  RandomEvents(uint64_t seed, uint32_t workers_max)
      : random_(seed, 1),
        workers_max_(workers_max),
        plan_(RandomPlan()),
        ledger_(plan_, {.lease_first = absl::Seconds(1)}) {}

  // Everything the ledger asked for, as text.
  std::string Run(int events) {
    for (int i = 0; i < events && !ledger_.finished(); ++i) Event();
    return std::move(actions_);
  }

 private:
  struct Held {
    WorkerId worker;
    v1::Lease lease;
  };

  uint32_t Random(uint32_t bound) { return random_.NextUint32() % bound; }
  bool Chance(double p) { return random_.NextUniform() < p; }

  v1::JobPlan RandomPlan() {
    TestPlan plan{.slots = 1 + Random(40),
                  .batch_size = 40,
                  .epochs = 3,
                  .checkpoint_steps = Random(4),
                  .train_count = 100 + Random(300),
                  .validation_count = Random(60),
                  .test_count = Random(60)};
    if (Chance(0.3)) plan.staleness = 1 + Random(4);
    if (Chance(0.1)) plan.unbounded = true;
    return plan.Build();
  }

  void Event() {
    now_ += absl::Milliseconds(Random(30));
    const double kind = random_.NextUniform();
    if (workers_.empty() || (kind < 0.03 && workers_.size() < workers_max_)) return Join();
    const WorkerId worker = workers_[Random(static_cast<uint32_t>(workers_.size()))];
    if (kind < 0.04) return Leave(worker);
    if (kind < 0.045) return Apply(ledger_.WorkerLeaving(worker, now_));
    if (kind < 0.20) return Apply(ledger_.Heard(worker, Chance(0.5) ? "batches" : "", now_));
    if (kind < 0.25) return Apply(ledger_.Tick(now_));
    if (kind < 0.30) return Settle();
    if (kind < 0.302) now_ += absl::Seconds(Random(8));  // everyone falls silent
    Work(worker, kind);
  }

  void Join() {
    workers_.push_back(next_worker_++);
    Apply(ledger_.WorkerJoined(workers_.back(), absl::StrCat("w", workers_.back()), now_));
  }

  void Leave(WorkerId worker) {
    std::erase(workers_, worker);
    std::erase_if(held_, [&](const Held& held) { return held.worker == worker; });
    Apply(ledger_.WorkerLeft(worker, now_));
  }

  void Settle() {
    if (boundaries_.empty()) return;
    const uint64_t version = boundaries_.front();
    boundaries_.erase(boundaries_.begin());
    Apply(ledger_.BoundarySettled(version, now_));
  }

  void Work(WorkerId worker, double kind) {
    size_t next = held_.size();
    for (size_t i = 0; i < held_.size(); ++i) {
      if (held_[i].worker != worker) continue;
      if (next == held_.size() || held_[i].lease.version() < held_[next].lease.version()) next = i;
    }
    if (next == held_.size()) return;
    const v1::Lease lease = held_[next].lease;
    if (kind < 0.33) {
      held_.erase(held_.begin() + static_cast<ptrdiff_t>(next));
      return Apply(ledger_.Declined(worker, lease.id(), now_, Chance(0.5)));
    }
    if (lease.version() > ledger_.version() || worker % 5 == Random(6)) return;
    held_.erase(held_.begin() + static_cast<ptrdiff_t>(next));
    v1::Report report;
    report.set_lease_id(lease.id());
    for (uint32_t unit = lease.begin(); unit < lease.end(); ++unit) {
      v1::UnitResult& result = *report.add_results();
      result.set_unit(unit);
      result.set_samples(UnitSamples(plan_, {lease.kind(), lease.version()}, unit));
      result.set_checksum(lease.version() * 1000 + unit);
    }
    Apply(ledger_.Reported(worker, report, now_));
  }

  void Apply(const LedgerActions& actions) {
    for (const auto& [worker, lease] : actions.grants) {
      held_.push_back({worker, lease});
      absl::StrAppend(&actions_, worker, ":", lease.id(), " ", lease.kind(), " ", lease.version(), " ", lease.begin(),
                      "-", lease.end(), " ", lease.staleness(), lease.newest() ? "n\n" : "\n");
    }
    for (const auto& round : actions.completed) absl::StrAppend(&actions_, "done ", RoundName(round.id), "\n");
    for (const uint64_t version : actions.boundaries) {
      boundaries_.push_back(version);
      absl::StrAppend(&actions_, "boundary ", version, "\n");
    }
    for (const std::string& warning : actions.warnings) absl::StrAppend(&actions_, warning, "\n");
    for (const std::string& corruption : actions.corruptions) absl::StrAppend(&actions_, corruption, "\n");
    for (const auto& expulsion : actions.expelled) absl::StrAppend(&actions_, "expelled ", expulsion.worker, "\n");
    absl::StrAppend(&actions_, ";");  // which event asked for it counts too
  }

  PhiloxStream random_;
  const uint32_t workers_max_;
  const v1::JobPlan plan_;
  Ledger ledger_;
  absl::Time now_ = absl::UnixEpoch();
  std::string actions_;
  std::vector<WorkerId> workers_;
  std::vector<Held> held_;
  std::vector<uint64_t> boundaries_;
  WorkerId next_worker_ = 1;
};

struct Recorded {
  uint32_t workers_max;
  std::string digest;  // of seeds [0, kSeeds)
};
constexpr uint64_t kSeeds = 400;
constexpr int kEvents = 3000;

TEST(LedgerActionsTest, TheSameEventsGiveTheActionsThatWereRecorded) {
  for (const Recorded& recorded :
       {Recorded{3, "5cc06e44f22270a7"}, Recorded{12, "8395fd0b67859197"}, Recorded{60, "3b9b0c22fb0034c3"}}) {
    std::string all;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) all += RandomEvents(seed, recorded.workers_max).Run(kEvents);
    EXPECT_EQ(Sha256Hex(all).substr(0, 16), recorded.digest)
        << "with up to " << recorded.workers_max << " workers, of " << all.size() << " bytes";
  }
}

}  // namespace
}  // namespace millrace
