#include "services/parameter_server/ledger.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::SizeIs;

// Drives a ledger by hand. Leases are written "worker: round units".
class LedgerTest : public ::testing::Test {
 protected:
  explicit LedgerTest(const TestPlan& plan = {}, const Ledger::Limits& limits = {})
      : plan_(plan.Build()), ledger_(plan_, limits) {}

  std::vector<std::string> Do(LedgerActions actions) {
    std::vector<std::string> grants;
    for (const auto& [worker, lease] : actions.grants) {
      leases_[worker].push_back(lease);
      const RoundId round{lease.kind(), lease.version()};
      grants.push_back(absl::StrCat(worker, ": ", RoundName(round), " ", UnitsName(round, lease.begin(), lease.end())));
    }
    last_ = std::move(actions);
    return grants;
  }

  v1::Report ReportFor(const v1::Lease& lease, uint64_t checksum = 1) const {
    v1::Report report;
    report.set_lease_id(lease.id());
    for (uint32_t unit = lease.begin(); unit < lease.end(); ++unit) {
      v1::UnitResult& result = *report.add_results();
      result.set_unit(unit);
      result.set_samples(UnitSamples(plan_, {lease.kind(), lease.version()}, unit));
      result.set_loss_sum(2.0 * result.samples());
      result.set_checksum(checksum);
    }
    return report;
  }

  // The worker reports its oldest lease.
  std::vector<std::string> Report(WorkerId worker, uint64_t checksum = 1) {
    const v1::Lease lease = leases_[worker].front();
    leases_[worker].erase(leases_[worker].begin());
    return Do(ledger_.Reported(worker, ReportFor(lease, checksum), now_));
  }

  const v1::JobPlan plan_;
  Ledger ledger_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<WorkerId, std::vector<v1::Lease>> leases_;
  LedgerActions last_;
};

TEST_F(LedgerTest, OneWorkerGetsWholeStepsOneAhead) {
  EXPECT_THAT(Do(ledger_.WorkerJoined(1, "a", now_)), ElementsAre("1: step 0 slots [0, 4)", "1: step 1 slots [0, 4)"));
  EXPECT_THAT(Report(1), ElementsAre("1: step 2 slots [0, 4)"));
  EXPECT_EQ(ledger_.version(), 1u);
}

TEST_F(LedgerTest, WorkersShareAStep) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  EXPECT_THAT(Do(ledger_.WorkerJoined(2, "b", now_)), IsEmpty()) << "all of steps 0 and 1 is leased";
  EXPECT_THAT(Report(1), ElementsAre("2: step 2 slots [0, 2)", "1: step 2 slots [2, 4)"));
}

TEST_F(LedgerTest, AStepCompletesOnceAndItsSumsAreReported) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  now_ += absl::Milliseconds(250);
  Report(1);
  ASSERT_THAT(last_.completed, SizeIs(1));
  EXPECT_EQ(RoundName(last_.completed[0].id), "step 0");
  EXPECT_EQ(last_.completed[0].sums.samples, 16u);
  EXPECT_EQ(last_.completed[0].sums.loss, 32.0);
  EXPECT_EQ(last_.completed[0].took, absl::Milliseconds(250));
}

TEST_F(LedgerTest, ALostWorkersLeasesAreGrantedAgainAtOnce) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerJoined(2, "b", now_));
  EXPECT_THAT(Do(ledger_.WorkerLeft(1, now_)), ElementsAre("2: step 0 slots [0, 4)", "2: step 1 slots [0, 4)"));
  EXPECT_EQ(ledger_.counters().regranted_leases, 2u);
  EXPECT_THAT(last_.warnings, ElementsAre(HasSubstr("lease of a for slots [0, 4) of step 0 is lost"), HasSubstr("")));
}

TEST_F(LedgerTest, ALateLeaseIsGrantedToAnotherAndTheFirstReportCounts) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerJoined(2, "b", now_));
  for (int i = 0; i < 29; ++i) {
    now_ += absl::Seconds(1);
    ledger_.Heard(1, "", now_);
    EXPECT_THAT(Do(ledger_.Heard(2, "", now_)), IsEmpty());
    EXPECT_THAT(Do(ledger_.Tick(now_)), IsEmpty());
  }
  now_ += absl::Seconds(2);
  ledger_.Heard(1, "", now_);
  EXPECT_THAT(Do(ledger_.Tick(now_)), ElementsAre("2: step 0 slots [0, 4)", "2: step 1 slots [0, 4)"))
      << "all that the late one holds";
  EXPECT_EQ(ledger_.counters().regranted_leases, 2u);
  Report(1);
  EXPECT_EQ(ledger_.version(), 1u) << "the late report came first";
  Report(2);
  EXPECT_EQ(ledger_.counters().duplicate_results, 4u);
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 0u);
}

class LateLeaseTest : public LedgerTest {
 protected:
  LateLeaseTest() : LedgerTest({.slots = 8, .batch_size = 32, .train_count = 3200}) {
    Do(ledger_.WorkerJoined(1, "a", now_));
    Do(ledger_.WorkerJoined(2, "b", now_));
    for (int step = 0; step < 12; ++step) Step(absl::Milliseconds(80), absl::Milliseconds(80));
  }

  // One step in which each worker takes so long for its share; a zero stands for one that does nothing. Ticks every
  // 10 ms. Returns how long the step took.
  absl::Duration Step(absl::Duration a, absl::Duration b) {
    const uint64_t version = ledger_.version();
    const absl::Time began = now_;
    std::map<WorkerId, absl::Time> turn = {{1, now_}, {2, now_}};
    std::map<uint64_t, absl::Time> due;
    while (ledger_.version() == version) {
      now_ += absl::Milliseconds(10);
      if (now_ - began > absl::Seconds(60)) ADD_FAILURE() << "stuck: " << ledger_.WaitingFor(now_);
      if (now_ - began > absl::Seconds(60)) break;
      for (const auto& [worker, per_slots] : {std::pair<WorkerId, absl::Duration>{1, a}, {2, b}}) {
        ledger_.Heard(worker, "", now_);
        if (per_slots == absl::ZeroDuration() || leases_[worker].empty()) continue;
        std::sort(leases_[worker].begin(), leases_[worker].end(),
                  [](const v1::Lease& x, const v1::Lease& y) { return x.version() < y.version(); });
        const v1::Lease& lease = leases_[worker].front();
        if (lease.version() > version) continue;
        const auto [entry, first] = due.try_emplace(lease.id(), now_ + per_slots * (lease.end() - lease.begin()) / 4);
        if (now_ >= entry->second) Report(worker);
      }
      Do(ledger_.Tick(now_));
    }
    return now_ - began;
  }
};

TEST_F(LateLeaseTest, AnOrdinaryRunComputesNothingTwice) {
  for (int step = 0; step < 20; ++step) {
    Step(absl::Milliseconds(80), step % 5 == 0 ? absl::Milliseconds(190) : absl::Milliseconds(80));  // hiccups
  }
  EXPECT_EQ(ledger_.counters().regranted_leases, 0u);
  EXPECT_EQ(ledger_.counters().duplicate_results, 0u);
}

TEST_F(LateLeaseTest, AStoppedWorkerCostsOneLatenessAndNotOnePerStep) {
  const absl::Duration ordinary = Step(absl::Milliseconds(80), absl::Milliseconds(80));
  // Late after three times the usual 80 ms; then the other computes that share too.
  EXPECT_LE(Step(absl::ZeroDuration(), absl::Milliseconds(80)), absl::Milliseconds(240 + 80) + ordinary);
  for (int step = 0; step < 5; ++step) {
    EXPECT_LE(Step(absl::ZeroDuration(), absl::Milliseconds(80)), absl::Milliseconds(200)) << "alone: twice the work";
  }
}

TEST_F(LateLeaseTest, ALateWorkerThatComesBackIsGivenWorkAgain) {
  for (int step = 0; step < 3; ++step) Step(absl::ZeroDuration(), absl::Milliseconds(80));
  for (int step = 0; step < 12; ++step) Step(absl::Milliseconds(80), absl::Milliseconds(80));
  const uint64_t before = ledger_.Workers()[0].samples;
  for (int step = 0; step < 4; ++step) Step(absl::Milliseconds(80), absl::Milliseconds(80));
  EXPECT_EQ(ledger_.Workers()[0].samples - before, 4u * 16) << "half of every step";
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 0u);
}

TEST_F(LateLeaseTest, AWorkerTenTimesSlowerCostsAtMostOneOfItsSlots) {
  for (int step = 0; step < 8; ++step) Step(absl::Milliseconds(800), absl::Milliseconds(80));
  // Alone, b would take 160 ms; one slot of a takes 200 ms.
  for (int step = 0; step < 8; ++step) {
    EXPECT_LE(Step(absl::Milliseconds(800), absl::Milliseconds(80)), absl::Milliseconds(160 + 200));
  }
}

class BackupLedgerTest : public LedgerTest {
 protected:
  // Worker 1 was there first: all of steps 0 and 1 is its own.
  BackupLedgerTest() : LedgerTest({.train_count = 320}, {.backup_workers = 1}) {
    for (const WorkerId worker : {1, 2, 3}) Do(ledger_.WorkerJoined(worker, absl::StrCat("w", worker), now_));
  }
};

TEST_F(BackupLedgerTest, WhoHasNothingToDoComputesTheOldestLeaseOfAnother) {
  EXPECT_EQ(ledger_.counters().backup_leases, 1u);
  ASSERT_THAT(leases_[2], SizeIs(1));
  EXPECT_THAT(leases_[3], IsEmpty()) << "one backup worker was asked for";
  EXPECT_EQ(leases_[2].front().version(), leases_[1].front().version());
  EXPECT_EQ(leases_[2].front().begin(), leases_[1].front().begin());
  EXPECT_EQ(leases_[2].front().end(), leases_[1].front().end());
  EXPECT_NE(leases_[2].front().id(), leases_[1].front().id());
}

TEST_F(BackupLedgerTest, TheFirstResultCountsAndTheOtherIsComparedWithIt) {
  const uint64_t version = ledger_.version();
  Report(2);
  EXPECT_EQ(ledger_.version(), version + 1) << "nobody waits for the slow one";
  Report(1);
  EXPECT_EQ(ledger_.counters().duplicate_results, 4u);
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 0u);
}

TEST_F(BackupLedgerTest, ABackupThatDiffersIsACorruption) {
  Report(2, /*checksum=*/7);
  Report(1, /*checksum=*/8);
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 4u);
}

TEST_F(BackupLedgerTest, ALostBackupIsNoWorkToGiveBack) {
  Do(ledger_.WorkerLeft(2, now_));
  EXPECT_EQ(ledger_.counters().regranted_leases, 0u);
  const uint64_t version = ledger_.version();
  Report(1);
  EXPECT_EQ(ledger_.version(), version + 1);
}

TEST_F(BackupLedgerTest, TheSharesAreThoseOfTheOthers) {
  Report(1);
  Report(1);
  // Of step 2, two of the three workers have a half each; the third computes one of these again.
  std::vector<std::pair<uint32_t, uint32_t>> halves;
  for (const auto& [worker, leases] : leases_) {
    for (const v1::Lease& lease : leases) {
      if (lease.version() == 2) halves.emplace_back(lease.begin(), lease.end());
    }
  }
  EXPECT_THAT(halves, testing::Contains(Pair(0u, 2u)));
  EXPECT_THAT(halves, testing::Contains(Pair(2u, 4u)));
}

// Worker 2 holds what it was given and brings nothing, while no time passes in which it could be late.
TEST_F(BackupLedgerTest, NobodyWaitsForAWorkerThatDawdles) {
  // What is not ahead of the weights, the oldest first.
  const auto report_oldest = [&](WorkerId worker) {
    std::vector<v1::Lease>& held = leases_[worker];
    const auto oldest = std::min_element(
        held.begin(), held.end(), [](const v1::Lease& x, const v1::Lease& y) { return x.version() < y.version(); });
    if (oldest == held.end() || oldest->version() > ledger_.version()) return;
    const v1::Lease lease = *oldest;
    held.erase(oldest);
    Do(ledger_.Reported(worker, ReportFor(lease), now_));
  };
  for (int turn = 0; turn < 100 && ledger_.version() < 12; ++turn) {
    report_oldest(1);
    report_oldest(3);
  }
  EXPECT_EQ(ledger_.version(), 12u) << ledger_.WaitingFor(now_);
  EXPECT_EQ(ledger_.counters().regranted_leases, 0u);
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 0u);
}

TEST_F(BackupLedgerTest, WithoutBackupWorkersNothingIsComputedTwice) {
  Ledger plain(plan_);
  for (const WorkerId worker : {1, 2, 3}) plain.WorkerJoined(worker, "w", now_);
  plain.Tick(now_);
  EXPECT_EQ(plain.counters().backup_leases, 0u);
}

TEST_F(LedgerTest, ASilentWorkerIsLateAndGetsNothingMore) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerJoined(2, "b", now_));
  now_ += absl::Seconds(4);
  ledger_.Heard(2, "", now_);
  EXPECT_THAT(Do(ledger_.Tick(now_)), ElementsAre("2: step 0 slots [0, 4)", "2: step 1 slots [0, 4)"));
  EXPECT_THAT(Report(2), ElementsAre("2: step 2 slots [0, 4)"));
}

TEST_F(LedgerTest, DuplicatesThatDifferAreACorruption) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerJoined(2, "b", now_));
  now_ += absl::Seconds(4);
  ledger_.Heard(2, "", now_);
  Do(ledger_.Tick(now_));
  Report(2, 1);
  Report(1, 77);
  EXPECT_EQ(ledger_.counters().checksum_mismatches, 4u);
  ASSERT_THAT(last_.corruptions, SizeIs(4));
  EXPECT_THAT(last_.corruptions[0], HasSubstr("slot 0 of step 0 computed by a differs"));
}

TEST_F(LedgerTest, ReportsOfAnEarlierLifeAreFencedOff) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  const v1::Report report = ReportFor(leases_[1][0]);
  Do(ledger_.WorkerLeft(1, now_));
  Do(ledger_.WorkerJoined(2, "a", now_));
  EXPECT_THAT(Do(ledger_.Reported(1, report, now_)), IsEmpty());
  Do(ledger_.Reported(2, report, now_));
  EXPECT_EQ(ledger_.counters().stale_reports, 1u);
  EXPECT_EQ(ledger_.version(), 0u);
}

TEST_F(LedgerTest, AReportThatDoesNotFitItsLeaseExpelsTheWorker) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  v1::Report report = ReportFor(leases_[1][0]);
  report.mutable_results(2)->set_samples(5);
  Do(ledger_.Reported(1, report, now_));
  ASSERT_THAT(last_.expelled, SizeIs(1));
  EXPECT_THAT(last_.expelled[0].reason, HasSubstr("unit 2 has 4 samples, not 5"));
  EXPECT_THAT(ledger_.Workers(), IsEmpty());

  Do(ledger_.WorkerJoined(2, "b", now_));
  report = ReportFor(leases_[2][0]);
  report.mutable_results()->RemoveLast();
  Do(ledger_.Reported(2, report, now_));
  ASSERT_THAT(last_.expelled, SizeIs(1));
  EXPECT_THAT(last_.expelled[0].reason, HasSubstr("only 3 of 4 units"));
}

TEST_F(LedgerTest, ADeclinedLeaseGoesToAnotherAndTheDeclinerPauses) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  const uint64_t lease = leases_[1][0].id();
  EXPECT_THAT(Do(ledger_.Declined(1, lease, now_)), IsEmpty());
  now_ += absl::Milliseconds(150);
  EXPECT_THAT(Do(ledger_.Tick(now_)), ElementsAre("1: step 0 slots [0, 4)"));
}

TEST_F(LedgerTest, ALeavingWorkerFinishesWhatItHasAndGetsNoMore) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerLeaving(1, now_));
  EXPECT_THAT(Report(1), IsEmpty());
  EXPECT_EQ(ledger_.version(), 1u);
}

TEST_F(LedgerTest, NoStepIsGrantedBesideAnEvaluation) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Report(1);
  EXPECT_THAT(Report(1), ElementsAre("1: validation at version 3 unit 0")) << "one ahead";
  EXPECT_THAT(Report(1), ElementsAre("1: validation at version 3 unit 1"));
  EXPECT_THAT(last_.boundaries, ElementsAre(3));
  EXPECT_THAT(Report(1), ElementsAre("1: validation at version 3 unit 2"));
  EXPECT_THAT(Report(1), IsEmpty());
  EXPECT_THAT(Report(1), ElementsAre("1: step 3 slots [0, 4)", "1: step 4 slots [0, 4)"));
}

TEST_F(LedgerTest, SaysWhatItWaitsFor) {
  EXPECT_EQ(ledger_.WaitingFor(now_), "step 0: slot 0 has no worker: none is connected");
  Do(ledger_.WorkerJoined(1, "worker-2", now_));
  now_ += absl::Milliseconds(3100);
  EXPECT_EQ(ledger_.WaitingFor(now_), "step 0: slot 0 leased to worker-2, last heard 3.1 s ago");
  ledger_.Heard(1, "weights 0 of shard 1", now_);
  EXPECT_EQ(ledger_.WaitingFor(now_),
            "step 0: slot 0 leased to worker-2 (waiting for weights 0 of shard 1), last heard 0.0 s ago");
}

class BoundaryTest : public LedgerTest {
 protected:
  BoundaryTest() : LedgerTest({.checkpoint_steps = 1, .validation_count = 0, .test_count = 0}) {}
};

TEST_F(BoundaryTest, TrainingHoldsWhileTwoBoundariesAreUnsettled) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Report(1);
  Report(1);
  EXPECT_THAT(leases_[1], IsEmpty()) << "versions 1 and 2 are both uncommitted";
  EXPECT_EQ(ledger_.WaitingFor(now_), "step 2: the checkpoint of version 1 is not committed yet");
  EXPECT_THAT(Do(ledger_.BoundarySettled(1, now_)), ElementsAre("1: step 2 slots [0, 4)"));
  EXPECT_THAT(Do(ledger_.BoundarySettled(2, now_)), ElementsAre("1: step 3 slots [0, 4)"));
}

class SevenSlotsTest : public LedgerTest {
 protected:
  SevenSlotsTest() : LedgerTest({.slots = 7}) {}
};

TEST_F(SevenSlotsTest, WhatNobodysShareCoversGoesToWhoeverIsDoneFirst) {
  EXPECT_THAT(Do(ledger_.WorkerJoined(1, "a", now_)), ElementsAre("1: step 0 slots [0, 7)", "1: step 1 slots [0, 7)"));
  Do(ledger_.WorkerJoined(2, "b", now_));
  EXPECT_THAT(Report(1), ElementsAre("2: step 2 slots [0, 2)", "1: step 2 slots [2, 4)"));
  EXPECT_THAT(Report(1), IsEmpty()) << "nothing ahead while step 2 has free slots";
  EXPECT_THAT(Report(2), ElementsAre("2: step 2 slot 4"));
  EXPECT_THAT(Report(1), ElementsAre("1: step 2 slot 5"));
  EXPECT_THAT(Report(2), ElementsAre("2: step 2 slot 6", "1: validation at version 3 unit 0",
                                     "2: validation at version 3 unit 1"));
}

TEST_F(LedgerTest, WorkAheadLeavesRoomForWhatALostWorkerHeld) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  Do(ledger_.WorkerJoined(2, "b", now_));
  Report(1);
  ASSERT_THAT(Report(1), ElementsAre("1: validation at version 3 unit 0", "2: validation at version 3 unit 1"));
  Report(1);
  EXPECT_THAT(leases_[1], SizeIs(1)) << "and waits for weights 3 with one lease, not two";
  EXPECT_THAT(Do(ledger_.WorkerLeft(2, now_)), ElementsAre("1: step 2 slots [0, 2)"));
}

class StaleLedgerTest : public LedgerTest {
 protected:
  explicit StaleLedgerTest(
      const TestPlan& plan = {.slots = 2, .batch_size = 4, .epochs = 1, .checkpoint_steps = 5, .staleness = 2})
      : LedgerTest(plan) {}

  std::vector<uint64_t> WeightsVersions(WorkerId worker) const {
    std::vector<uint64_t> versions;
    for (const v1::Lease& lease : leases_.at(worker)) versions.push_back(lease.version() - lease.staleness());
    return versions;
  }
};

TEST_F(StaleLedgerTest, ASlowWorkerHoldsUpAsManyStepsAsTheStalenessSays) {
  EXPECT_THAT(Do(ledger_.WorkerJoined(1, "slow", now_)),
              ElementsAre("1: step 0 slots [0, 2)", "1: step 1 slots [0, 2)"));
  EXPECT_THAT(Do(ledger_.WorkerJoined(2, "fast", now_)), ElementsAre("2: step 2 slot 0", "2: step 2 slot 1"));
  EXPECT_THAT(WeightsVersions(2), ElementsAre(0, 0));
  EXPECT_THAT(Report(2), ElementsAre("2: step 3 slot 0")) << "to prefetch for";
  EXPECT_THAT(WeightsVersions(2), ElementsAre(0, 1));
  EXPECT_THAT(Report(2), IsEmpty()) << "step 3 needs step 0";
  EXPECT_EQ(ledger_.version(), 0u);
  EXPECT_THAT(ledger_.WaitingFor(now_), HasSubstr("step 0: slot 0 leased to slow"));
  Report(1);
  EXPECT_EQ(ledger_.version(), 1u);
  Report(1);
  EXPECT_EQ(ledger_.version(), 3u) << "step 2 was there already";
}

TEST_F(StaleLedgerTest, ALeaseSaysWhichWeightsAndNothingReachesBackBeyondABoundary) {
  Do(ledger_.WorkerJoined(1, "a", now_));
  std::map<uint64_t, uint64_t> weights;  // by step
  while (!ledger_.finished()) {
    for (const v1::Lease& lease : leases_[1]) {
      EXPECT_FALSE(lease.newest());
      const bool train = lease.kind() == v1::Lease::KIND_TRAIN;
      EXPECT_TRUE(train || lease.staleness() == 0);
      if (train) weights[lease.version()] = lease.version() - lease.staleness();
    }
    Report(1);
    if (!last_.boundaries.empty()) Do(ledger_.BoundarySettled(last_.boundaries[0], now_));
  }
  EXPECT_THAT(weights, ElementsAre(Pair(0, 0), Pair(1, 0), Pair(2, 0), Pair(3, 1), Pair(4, 2), Pair(5, 5), Pair(6, 5),
                                   Pair(7, 5), Pair(8, 6), Pair(9, 7)));
}

class UnboundedLedgerTest : public StaleLedgerTest {
 protected:
  UnboundedLedgerTest() : StaleLedgerTest({.slots = 2, .batch_size = 4, .epochs = 1, .unbounded = true}) {}
};

TEST_F(UnboundedLedgerTest, OthersGoOnWithoutASlowWorkerAndNoTwoResultsAreAlike) {
  Do(ledger_.WorkerJoined(1, "slow", now_));
  Do(ledger_.WorkerJoined(2, "fast", now_));
  for (int slot = 0; slot < 12; ++slot) {
    ASSERT_THAT(leases_[2], Not(IsEmpty()));
    EXPECT_TRUE(leases_[2].front().newest());
    EXPECT_EQ(WeightsVersions(2).front(), 0u);
    Report(2);
  }
  EXPECT_EQ(ledger_.version(), 0u);
  const v1::Lease held = leases_[1].front();
  ledger_.Tick(now_ += absl::Minutes(1));
  ledger_.Heard(2, "", now_);
  Do(ledger_.Tick(now_));
  while (ledger_.version() == 0) Report(2, /*checksum=*/7);
  Do(ledger_.Reported(1, ReportFor(held, /*checksum=*/8), now_));
  EXPECT_GT(ledger_.counters().duplicate_results, 0u);
  EXPECT_THAT(last_.corruptions, IsEmpty());
}

}  // namespace
}  // namespace millrace
