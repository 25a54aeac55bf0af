#include "services/parameter_server/coordinator.h"

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class FakeConnection : public WorkerConnection {
 public:
  void Send(const v1::CoordinatorMessage& message) override { sent.push_back(message); }
  void Close(const absl::Status& status) override { closed = status; }

  std::vector<v1::Lease> TakeLeases() {
    std::vector<v1::Lease> leases;
    for (const v1::CoordinatorMessage& message : std::exchange(sent, {})) {
      if (message.has_welcome()) welcome = message.welcome();
      if (message.has_finish()) finish = message.finish();
      if (message.has_lease()) leases.push_back(message.lease());
    }
    return leases;
  }

  std::vector<v1::CoordinatorMessage> sent;
  std::optional<absl::Status> closed;
  std::optional<v1::Welcome> welcome;
  std::optional<v1::Finish> finish;
};

// Writes down what it is asked for.
class FakeQueue : public CheckpointQueue {
 public:
  FakeQueue(std::vector<std::string>* asked, std::map<uint64_t, SlotChecksums>* checksums, int* alive)
      : asked_(asked), checksums_(checksums), alive_(alive) {
    ++*alive_;
  }
  ~FakeQueue() override { --*alive_; }
  void Commit(uint64_t version, CheckpointRecord record) override {
    asked_->push_back(absl::StrCat("commit ", version, " after ", record.validation.size(), " evaluations"));
    if (record.visits.has_value()) {
      asked_->back() += absl::StrCat(" and ", record.visits->samples(), " samples of its epoch");
    }
    EXPECT_EQ(record.fingerprint, (RunFingerprint{"1.13.1", "AVX2", 1}));
    (*checksums_)[version] = std::move(record.slot_checksums);
  }
  void Export(uint64_t version, std::optional<v1::Evaluation> validation, std::optional<v1::Evaluation> test) override {
    asked_->push_back(absl::StrCat("export ", version, validation.has_value() ? " validated" : "",
                                   test.has_value() ? " tested" : ""));
  }
  void Skip(uint64_t version) override { asked_->push_back(absl::StrCat("skip ", version)); }
  void NoteBest(const v1::Evaluation& best) override { asked_->push_back(absl::StrCat("best ", best.version())); }
  void Stop() override {}

 private:
  std::vector<std::string>* const asked_;
  std::map<uint64_t, SlotChecksums>* const checksums_;
  int* const alive_;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  void Make(uint32_t num_shards = 1) {
    coordinator_ = std::make_unique<Coordinator>(Coordinator::Options{.num_shards = num_shards,
                                                                      .data_addresses = {"unix:/data", "unix:/data-1"},
                                                                      .clock = &clock_,
                                                                      .metrics = &metrics_,
                                                                      .tick_interval = absl::InfiniteDuration()});
  }
  void Begin(const TestPlan& plan = {}, std::optional<RunFingerprint> resumed = std::nullopt) {
    plan_ = plan.Build();
    spec_(*plan_.mutable_spec());
    ASSERT_THAT(coordinator_->Begin(
                    plan_, {.version = plan.start_version, .fingerprint = std::move(resumed)},
                    [this](const v1::JobPlan&, const std::vector<v1::ShardInfo>&) {
                      EXPECT_EQ(queues_, 0) << "two checkpointers at one directory";
                      return std::make_unique<FakeQueue>(&asked_, &checksums_, &queues_);
                    },
                    [this]() -> absl::StatusOr<RunStart> {
                      EXPECT_EQ(queues_, 0) << "it might commit a newer one";
                      return newest_;
                    }),
                IsOk());
  }
  // One heartbeat.
  absl::StatusOr<v1::RegisterShardResponse> Beat(uint32_t shard, uint32_t num_shards, uint64_t incarnation,
                                                 uint64_t serving_run_id, const std::string& broken = "") {
    v1::RegisterShardRequest request;
    request.set_shard(shard);
    request.set_num_shards(num_shards);
    request.set_address(absl::StrCat("unix:/shard-", shard));
    request.set_incarnation(incarnation);
    request.set_serving_run_id(serving_run_id);
    request.set_broken(broken);
    request.set_version(3);
    return coordinator_->RegisterShard(request);
  }
  // Registers, serves what it is told to serve, and says so.
  absl::StatusOr<v1::RegisterShardResponse> Register(uint32_t shard, uint32_t num_shards = 1,
                                                     uint64_t incarnation = 7) {
    const auto told = Beat(shard, num_shards, incarnation, 0);
    return told.ok() ? Beat(shard, num_shards, incarnation, told->plan().run_id()) : told;
  }
  WorkerId Attach(FakeConnection* connection, const std::string& name = "worker-0", uint64_t incarnation = 1,
                  const std::string& cpu_capability = "AVX2") {
    v1::Hello hello;
    hello.set_worker(name);
    hello.set_incarnation(incarnation);
    hello.set_torch_version("1.13.1");
    hello.set_cpu_capability(cpu_capability);
    hello.set_threads(1);
    const auto id = coordinator_->Attach(hello, connection);
    EXPECT_THAT(id, IsOk());
    return id.value_or(0);
  }
  void Report(WorkerId worker, const v1::Lease& lease) {
    v1::WorkerMessage message;
    v1::Report& report = *message.mutable_report();
    report.set_lease_id(lease.id());
    for (uint32_t unit = lease.begin(); unit < lease.end(); ++unit) {
      v1::UnitResult& result = *report.add_results();
      result.set_unit(unit);
      result.set_samples(UnitSamples(plan_, {lease.kind(), lease.version()}, unit));
      result.set_correct(result.samples() / 2);
      result.set_checksum(100 * lease.version() + unit);
      result.set_loss_sum(lease.kind() == v1::Lease::KIND_TRAIN ? train_loss_ * result.samples()
                                                                : LossAt(lease.version()));
    }
    clock_.Advance(absl::Milliseconds(100));
    EXPECT_THAT(coordinator_->Receive(worker, message), IsOk());
  }
  // Does whatever the worker is granted until there is no more.
  void Work(WorkerId worker, FakeConnection* connection) {
    for (auto leases = connection->TakeLeases(); !leases.empty(); leases = connection->TakeLeases()) {
      for (const v1::Lease& lease : leases) Report(worker, lease);
    }
  }
  void WorkUntil(uint64_t version, WorkerId worker, FakeConnection* connection) {
    std::vector<v1::Lease> leases;
    while (coordinator_->GetStatus().version() < version) {
      for (v1::Lease& lease : connection->TakeLeases()) leases.push_back(std::move(lease));
      ASSERT_THAT(leases, testing::Not(IsEmpty()));
      const v1::Lease lease = leases.front();
      leases.erase(leases.begin());
      Report(worker, lease);
    }
  }
  // What an evaluation batch comes to.
  double LossAt(uint64_t version) { return losses_.contains(version) ? losses_[version] : 1; }
  std::string State() { return v1::JobStatus::State_Name(coordinator_->GetStatus().state()); }

  FakeClock clock_;
  Metrics metrics_{"test"};
  std::function<void(v1::JobSpec&)> spec_ = [](v1::JobSpec&) {};  // what else there is in it
  v1::JobPlan plan_;
  std::vector<std::string> asked_;
  std::map<uint64_t, SlotChecksums> checksums_;   // by the version they were to be saved with
  int queues_ = 0;                                // alive
  absl::StatusOr<RunStart> newest_ = RunStart();  // what is committed
  double train_loss_ = 1;                         // of a sample
  std::map<uint64_t, double> losses_;
  std::unique_ptr<Coordinator> coordinator_;
};

TEST_F(CoordinatorTest, SaysWhatItWaitsForUntilTrainingBegins) {
  Make(2);
  coordinator_->SetStarting("data service at unix:/data: connection refused");
  EXPECT_EQ(State(), "STATE_STARTING");
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "data service at unix:/data: connection refused");
  EXPECT_THAT(Register(0, 2), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("data service")));
  Begin();
  const auto registered = Register(1, 2);
  ASSERT_THAT(registered, IsOk());
  EXPECT_EQ(registered->shard().begin(), 128u);
  EXPECT_EQ(registered->shard().end(), 256u);
  EXPECT_NE(registered->plan().run_id(), 0u);
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "shard 0 of 2 to register");
  FakeConnection early;
  const WorkerId worker = Attach(&early);
  EXPECT_THAT(early.sent, IsEmpty());
  ASSERT_THAT(Register(0, 2), IsOk());
  EXPECT_EQ(State(), "STATE_TRAINING");
  EXPECT_THAT(early.TakeLeases(), SizeIs(2));
  ASSERT_TRUE(early.welcome.has_value());
  EXPECT_THAT(early.welcome->data_addresses(), ElementsAre("unix:/data", "unix:/data-1"));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, ShowsTheDataReplicasAsTheyWereSeenLast) {
  Make();
  Begin();
  v1::DataReplicaStatus replica;
  replica.set_address("unix:/data-1");
  coordinator_->DataReplicasSeen({replica});
  replica.set_state(v1::DataReplicaStatus::STATE_DOWN);
  coordinator_->DataReplicasSeen({replica});
  ASSERT_THAT(coordinator_->GetStatus().data_replicas(), SizeIs(1));
  EXPECT_EQ(coordinator_->GetStatus().data_replicas(0).address(), "unix:/data-1");
  EXPECT_EQ(coordinator_->GetStatus().data_replicas(0).state(), v1::DataReplicaStatus::STATE_DOWN);
}

TEST_F(CoordinatorTest, RunsAJobToItsEnd) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  EXPECT_THAT(coordinator_->GetStatus().waiting_for(), HasSubstr("none is connected"));
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_THAT(asked_, ElementsAre("commit 3 after 0 evaluations", "best 3", "export 3 validated",
                                  "commit 6 after 1 evaluations", "export 6 validated tested"));
  EXPECT_EQ(State(), "STATE_FINISHING");
  EXPECT_THAT(coordinator_->GetStatus().waiting_for(), HasSubstr("checkpoint and export of version 3"));

  coordinator_->Committed(6, "optimizer-digest");
  coordinator_->Exported(6, "weights-digest");
  coordinator_->Settled(3);
  connection.TakeLeases();
  EXPECT_FALSE(connection.finish.has_value()) << "if a shard is lost now, work is to be done again";
  coordinator_->Settled(6);
  connection.TakeLeases();
  ASSERT_TRUE(connection.finish.has_value());
  EXPECT_FALSE(connection.finish->failed());
  EXPECT_EQ(State(), "STATE_DONE");
  clock_.Advance(absl::Hours(1));
  const v1::JobStatus status = coordinator_->GetStatus();
  EXPECT_EQ(status.version(), 6u);
  EXPECT_EQ(status.epoch(), 2u);
  EXPECT_EQ(status.weights_sha256(), "weights-digest");
  EXPECT_EQ(status.optimizer_sha256(), "optimizer-digest");
  EXPECT_THAT(status.validation(), SizeIs(2));
  EXPECT_EQ(status.test().samples(), 12u);
  EXPECT_EQ(status.test().accuracy(), 0.5);
  EXPECT_EQ(status.train_loss(), 1);
  EXPECT_EQ(status.trained_samples(), 80u);
  EXPECT_LT(status.elapsed_seconds(), 60);
  coordinator_->Tick();
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_training_images_total 80"));

  FakeConnection late;
  const WorkerId latecomer = Attach(&late, "worker-9");
  EXPECT_THAT(late.TakeLeases(), IsEmpty());
  EXPECT_TRUE(late.finish.has_value());
  coordinator_->Detach(latecomer);
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, EachCheckpointIsGivenTheChecksumsOfTheStepsSinceTheLast) {
  Make();
  Begin({.slots = 2, .epochs = 3});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_EQ(checksums_[3], (SlotChecksums{.first_step = 0, .slots = 2, .values = {0, 1, 100, 101, 200, 201}}));
  coordinator_->CommitFailed(3, absl::ResourceExhaustedError("disk full"));
  coordinator_->Settled(3);
  EXPECT_EQ(checksums_[6].first_step, 0u) << "no checkpoint holds them yet";
  EXPECT_EQ(checksums_[6].end_step(), 6u);
  coordinator_->Committed(6, "optimizer-digest");
  coordinator_->Settled(6);
  Work(worker, &connection);
  EXPECT_EQ(checksums_[9], (SlotChecksums{.first_step = 6, .slots = 2, .values = {600, 601, 700, 701, 800, 801}}));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, WhatCannotBeMadeAgainIsNotRecorded) {
  Make();
  Begin({.unbounded = true});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  WorkUntil(3, worker, &connection);
  ASSERT_TRUE(checksums_.contains(3));
  EXPECT_TRUE(checksums_[3].empty());
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AResumedEpochEndIsEvaluatedAndExportedAgain) {
  Make();
  Begin({.start_version = 3});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_THAT(asked_,
              ElementsAre("best 3", "export 3 validated", "commit 6 after 1 evaluations", "export 6 validated tested"));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AJobThatGetsNoBetterEndsInTheUsualWay) {
  Make();
  spec_ = [](v1::JobSpec& spec) { spec.mutable_early_stopping()->set_patience(1); };
  losses_ = {{3, 1}, {6, 0.5}, {9, 0.75}};
  Begin({.epochs = 9});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_FALSE(coordinator_->GetStatus().stopped_early()) << "a boundary behind is not settled";
  coordinator_->Settled(3);
  Work(worker, &connection);
  coordinator_->Committed(6, "optimizer-digest");
  coordinator_->Settled(6);
  Work(worker, &connection);
  EXPECT_THAT(asked_, ElementsAre("commit 3 after 0 evaluations", "best 3", "export 3 validated",
                                  "commit 6 after 1 evaluations", "best 6", "export 6 validated",
                                  "commit 9 after 2 evaluations", "export 9 validated tested"));
  EXPECT_EQ(State(), "STATE_FINISHING");
  coordinator_->Committed(9, "optimizer-digest");
  coordinator_->Settled(9);
  EXPECT_EQ(State(), "STATE_DONE");
  const v1::JobStatus status = coordinator_->GetStatus();
  EXPECT_TRUE(status.stopped_early());
  EXPECT_EQ(status.version(), 9u);
  EXPECT_EQ(status.best().version(), 6u);
  EXPECT_EQ(status.test().version(), 9u);
  EXPECT_EQ(status.best_test().version(), 6u);
  EXPECT_LT(status.best_test().loss(), status.test().loss());
  connection.TakeLeases();
  ASSERT_TRUE(connection.finish.has_value());
  EXPECT_FALSE(connection.finish->failed());
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AnEarlyLastVersionThatWasNotSavedFailsTheJob) {
  Make();
  spec_ = [](v1::JobSpec& spec) { spec.mutable_early_stopping()->set_patience(1); };
  losses_ = {{3, 1}, {6, 2}};
  Begin({.epochs = 9});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  coordinator_->Committed(3, "optimizer-digest");
  coordinator_->Settled(3);
  coordinator_->CommitFailed(6, absl::ResourceExhaustedError("disk full"));
  coordinator_->Settled(6);
  EXPECT_EQ(State(), "STATE_FAILED");
  EXPECT_THAT(coordinator_->GetStatus().failure(), HasSubstr("version 6: disk full"));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, OnlyTheBestVersionsArePublishedIfThatIsTheRule) {
  Make();
  spec_ = [](v1::JobSpec& spec) { spec.set_publish_best(true); };
  losses_ = {{3, 1}, {6, 2}, {9, 0.5}};
  Begin({.epochs = 3});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  for (const uint64_t version : {3, 6, 9}) {
    Work(worker, &connection);
    coordinator_->Committed(version, "optimizer-digest");
    coordinator_->Settled(version);
  }
  EXPECT_THAT(asked_, ElementsAre("commit 3 after 0 evaluations", "best 3", "export 3 validated",
                                  "commit 6 after 1 evaluations", "skip 6", "commit 9 after 2 evaluations", "best 9",
                                  "export 9 validated tested"));
  EXPECT_EQ(State(), "STATE_DONE");
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, ABestVersionThatIsGoneIsNotTestedAndTheJobEnds) {
  Make();
  losses_ = {{3, 1}, {6, 2}};
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection first, second;
  const WorkerId worker = Attach(&first), other = Attach(&second, "worker-1");
  bool declined = false;
  for (int i = 0; i < 100 && !first.finish.has_value(); ++i) {
    for (const auto& [id, connection] : {std::pair(worker, &first), std::pair(other, &second)}) {
      for (const v1::Lease& lease : connection->TakeLeases()) {
        if (lease.kind() != v1::Lease::KIND_TEST || lease.version() == 6) {
          Report(id, lease);
          continue;
        }
        v1::WorkerMessage message;
        message.mutable_decline()->set_lease_id(lease.id());
        message.mutable_decline()->set_weights_gone(true);
        EXPECT_THAT(coordinator_->Receive(id, message), IsOk());
        declined = true;
      }
    }
  }
  EXPECT_TRUE(declined);
  EXPECT_EQ(State(), "STATE_FINISHING");
  EXPECT_EQ(coordinator_->GetStatus().best().version(), 3u);
  EXPECT_FALSE(coordinator_->GetStatus().has_best_test());
  coordinator_->Detach(worker);
  coordinator_->Detach(other);
}

TEST_F(CoordinatorTest, WithoutValidationAnEpochIsExportedAtOnce) {
  Make();
  Begin({.epochs = 1, .validation_count = 0, .test_count = 0});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_THAT(asked_, ElementsAre("commit 3 after 0 evaluations", "export 3"));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, ANewLifeTakesTheOldOnesPlace) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection old_life, new_life;
  const WorkerId old_id = Attach(&old_life, "worker-0", 1);
  const WorkerId new_id = Attach(&new_life, "worker-0", 2);
  ASSERT_TRUE(old_life.closed.has_value());
  EXPECT_THAT(*old_life.closed, StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(new_life.TakeLeases(), SizeIs(2));
  coordinator_->Detach(old_id);
  EXPECT_THAT(coordinator_->GetStatus().workers(), SizeIs(1));
  EXPECT_EQ(coordinator_->GetStatus().regranted_leases(), 2u);
  coordinator_->Detach(new_id);
  EXPECT_THAT(coordinator_->GetStatus().workers(), IsEmpty());
}

TEST_F(CoordinatorTest, NamesWhatALateJobWaitsFor) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "");
  EXPECT_EQ(coordinator_->GetStatus().workers(0).doing(), "computing slots [0, 4) of step 0");
  clock_.Advance(absl::Milliseconds(2500));
  ASSERT_THAT(Register(0), IsOk());
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "step 0: slot 0 leased to worker-0, last heard 2.5 s ago");
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, TrainingBeginsWhenEveryShardServesThePlan) {
  Make(2);
  Begin();
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  const auto told = Beat(0, 2, 7, 0);
  ASSERT_THAT(Register(1, 2), IsOk());
  clock_.Advance(absl::Milliseconds(1500));
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(),
            "version 0 to be served by shard 0 at unix:/shard-0, last heard 1.5 s ago");
  EXPECT_THAT(connection.TakeLeases(), IsEmpty());
  ASSERT_THAT(Beat(0, 2, 7, told->plan().run_id()), IsOk());
  EXPECT_THAT(connection.TakeLeases(), SizeIs(2));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AShardThatWasRestartedTakesTheJobBackToItsNewestCheckpoint) {
  Make(2);
  Begin();
  ASSERT_THAT(Register(0, 2, 7), IsOk());
  const auto first = Register(1, 2, 8);
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(Register(1, 2, 8), IsOk()) << "asking again is no harm";
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  WorkUntil(4, worker, &connection);
  coordinator_->Committed(3, "optimizer-digest");
  const uint64_t before = coordinator_->GetStatus().version();

  v1::Evaluation evaluation;
  evaluation.set_version(1);
  newest_ = RunStart{.version = 3, .checkpoint_dir = "/checkpoints/3", .validation = {evaluation}};
  EXPECT_THAT(Beat(1, 2, 9, 0), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("goes back")));
  EXPECT_EQ(State(), "STATE_RECOVERING");
  EXPECT_EQ(coordinator_->GetStatus().version(), before);
  ASSERT_TRUE(connection.closed.has_value());
  EXPECT_THAT(*connection.closed, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shard 1 was restarted")));
  coordinator_->Detach(worker);
  FakeConnection again;
  const WorkerId back = Attach(&again);
  EXPECT_THAT(again.TakeLeases(), IsEmpty());

  coordinator_->Tick();
  EXPECT_EQ(State(), "STATE_RECOVERING");
  const auto told = Beat(1, 2, 9, 0);
  ASSERT_THAT(told, IsOk());
  EXPECT_NE(told->plan().run_id(), first->plan().run_id());
  EXPECT_EQ(told->plan().start_version(), 3u);
  EXPECT_EQ(told->plan().checkpoint_dir(), "/checkpoints/3");
  EXPECT_THAT(coordinator_->GetStatus().waiting_for(), HasSubstr("version 3 to be served by shard 0"));
  ASSERT_THAT(Beat(1, 2, 9, told->plan().run_id()), IsOk());
  EXPECT_THAT(again.TakeLeases(), IsEmpty()) << "shard 0 has not gone back yet";
  ASSERT_THAT(Beat(0, 2, 7, first->plan().run_id()), IsOk());
  ASSERT_THAT(Beat(0, 2, 7, told->plan().run_id()), IsOk());
  EXPECT_EQ(coordinator_->GetStatus().version(), 3u);
  EXPECT_EQ(coordinator_->GetStatus().committed_version(), 3u);
  EXPECT_THAT(coordinator_->GetStatus().validation(), SizeIs(1));
  clock_.Advance(absl::Milliseconds(300));
  Work(back, &again);
  coordinator_->Settled(3);
  Work(back, &again);
  EXPECT_EQ(coordinator_->GetStatus().version(), 6u) << "to the end of the job";
  EXPECT_EQ(checksums_[6].first_step, 3u);
  EXPECT_EQ(checksums_[6].end_step(), 6u) << "a step that was made twice is recorded once";
  const v1::JobStatus status = coordinator_->GetStatus();
  ASSERT_EQ(status.recovery_count(), 1u);
  EXPECT_EQ(status.recoveries(0).version(), before);
  EXPECT_EQ(status.recoveries(0).start_version(), 3u);
  EXPECT_NEAR(status.recoveries(0).seconds(), 0.6, 0.01) << "until version 3 was evaluated again";
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_coordinator_recoveries_total 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr(absl::StrCat("millrace_coordinator_repeated_steps_total ", before - 3)));
  coordinator_->Detach(back);
}

TEST_F(CoordinatorTest, AnAsynchronousJobWhoseLossRunsAwayGoesBackAndOnSynchronously) {
  Make();
  Begin({.staleness = 2});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  train_loss_ = std::nan("");
  const std::vector<v1::Lease> leases = connection.TakeLeases();
  Report(worker, leases.at(0));
  EXPECT_EQ(State(), "STATE_RECOVERING");
  ASSERT_TRUE(connection.closed.has_value());
  EXPECT_THAT(*connection.closed, StatusIs(absl::StatusCode::kUnavailable,
                                           HasSubstr("ran away at step 0 with gradients up to 2 steps old")));
  coordinator_->Detach(worker);

  coordinator_->Tick();
  const auto told = Register(0);
  ASSERT_THAT(told, IsOk());
  EXPECT_TRUE(IsSynchronousAgain(told->plan().spec()));
  FakeConnection again;
  const WorkerId back = Attach(&again);
  Report(back, again.TakeLeases().at(0));
  EXPECT_EQ(State(), "STATE_TRAINING");
  EXPECT_EQ(coordinator_->GetStatus().recovery_count(), 1u);
  coordinator_->Detach(back);
}

TEST_F(CoordinatorTest, AReplacedShardIsSentAway) {
  Make();
  Begin();
  ASSERT_THAT(Register(0, 1, 7), IsOk());
  EXPECT_THAT(Beat(0, 1, 8, 0), StatusIs(absl::StatusCode::kUnavailable));
  coordinator_->Tick();
  ASSERT_THAT(Register(0, 1, 8), IsOk());
  EXPECT_THAT(Beat(0, 1, 7, 0), StatusIs(absl::StatusCode::kAborted, HasSubstr("taken the place")));
  EXPECT_EQ(State(), "STATE_TRAINING") << "or the two would take turns for ever";
  EXPECT_EQ(coordinator_->GetStatus().recovery_count(), 1u);
}

TEST_F(CoordinatorTest, AShardThatWasRestartedBeforeTrainingBeganCostsNothing) {
  Make(2);
  Begin();
  ASSERT_THAT(Register(0, 2, 7), IsOk());
  ASSERT_THAT(Register(0, 2, 8), IsOk());
  ASSERT_THAT(Register(1, 2, 9), IsOk());
  EXPECT_EQ(State(), "STATE_TRAINING");
  EXPECT_EQ(coordinator_->GetStatus().recovery_count(), 0u);
}

TEST_F(CoordinatorTest, AShardThatBreaksAtTheSameStepAgainAndAgainFailsTheJob) {
  Make();
  Begin();
  FakeConnection connection;
  uint64_t run_id = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto served = Register(0);
    ASSERT_THAT(served, IsOk());
    EXPECT_NE(std::exchange(run_id, served->plan().run_id()), served->plan().run_id());
    EXPECT_EQ(State(), "STATE_TRAINING");
    Beat(0, 1, 7, run_id, "LibTorch: out of luck").IgnoreError();
    Beat(0, 1, 7, run_id, "LibTorch: out of luck").IgnoreError();  // the same news
    EXPECT_EQ(State(), attempt < 2 ? "STATE_RECOVERING" : "STATE_FAILED");
    coordinator_->Tick();
  }
  EXPECT_EQ(State(), "STATE_FAILED");
  EXPECT_EQ(coordinator_->GetStatus().failure(), "shard 0 broke: LibTorch: out of luck (3 times in a row)");
}

TEST_F(CoordinatorTest, AJobThatCannotGoBackFailsAndSaysWhy) {
  Make();
  Begin();
  ASSERT_THAT(Register(0, 1, 7), IsOk());
  newest_ = absl::DataLossError("none of the 2 checkpoints is usable");
  Beat(0, 1, 8, 0).IgnoreError();
  FakeConnection waiting, late;
  const WorkerId worker = Attach(&waiting);
  coordinator_->Tick();
  EXPECT_EQ(State(), "STATE_FAILED");
  EXPECT_EQ(coordinator_->GetStatus().failure(), "the job cannot go back: none of the 2 checkpoints is usable");
  ASSERT_TRUE(waiting.closed.has_value());
  EXPECT_THAT(*waiting.closed, StatusIs(absl::StatusCode::kAborted, HasSubstr("none of the 2")));
  v1::Hello hello;
  hello.set_worker("worker-1");
  EXPECT_THAT(coordinator_->Attach(hello, &late), StatusIs(absl::StatusCode::kAborted));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AShardLostWhenAllStepsAreMadeButNotSavedIsMadeUpFor) {
  Make();
  Begin({.epochs = 1, .validation_count = 0, .test_count = 0});
  ASSERT_THAT(Register(0, 1, 7), IsOk());
  FakeConnection connection, again;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  ASSERT_EQ(State(), "STATE_FINISHING");
  Beat(0, 1, 8, 0).IgnoreError();
  coordinator_->Tick();
  ASSERT_THAT(Register(0, 1, 8), IsOk());
  const WorkerId back = Attach(&again);
  Work(back, &again);
  EXPECT_THAT(asked_,
              ElementsAre("commit 3 after 0 evaluations", "export 3", "commit 3 after 0 evaluations", "export 3"));
  coordinator_->Settled(3);
  EXPECT_EQ(State(), "STATE_DONE");
  Beat(0, 1, 9, 0).IgnoreError();
  EXPECT_EQ(State(), "STATE_DONE") << "all is safe on disk";
  coordinator_->Detach(worker);
  coordinator_->Detach(back);
}

TEST_F(CoordinatorTest, ASilentShardIsNamed) {
  Make(2);
  Begin();
  ASSERT_THAT(Register(0, 2), IsOk());
  ASSERT_THAT(Register(1, 2), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  clock_.Advance(absl::Milliseconds(2500));
  ASSERT_THAT(Register(0, 2), IsOk());
  EXPECT_THAT(coordinator_->GetStatus().waiting_for(),
              HasSubstr("shard 1 at unix:/shard-1, last heard 2.5 s ago; step 0: slot 0 leased to worker-0"));
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, MoreShardsThanParametersAreRefused) {
  Make(5);
  EXPECT_THAT(coordinator_->Begin(TestPlan{}.Build(), {}, nullptr, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument))
      << "256 parameters in blocks of 64";
}

TEST_F(CoordinatorTest, ShardsThatDoNotBelongHereAreRefused) {
  Make(2);
  Begin();
  EXPECT_THAT(Register(2, 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Register(0, 3), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a job of 2 shards")));
}

TEST_F(CoordinatorTest, OnlyTheLastCheckpointsFailureFailsTheJob) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  coordinator_->CommitFailed(3, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(State(), "STATE_TRAINING");
  EXPECT_EQ(coordinator_->GetStatus().checkpoint_error(), "checkpoint of version 3: disk full");
  coordinator_->Exported(3, "weights-digest");
  EXPECT_EQ(coordinator_->GetStatus().checkpoint_error(), "checkpoint of version 3: disk full") << "still not saved";
  coordinator_->Committed(5, "optimizer-digest");
  EXPECT_EQ(coordinator_->GetStatus().checkpoint_error(), "");
  coordinator_->ExportFailed(3, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(coordinator_->GetStatus().checkpoint_error(), "export of version 3: disk full");
  coordinator_->CommitFailed(6, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(State(), "STATE_FAILED");
  EXPECT_THAT(coordinator_->GetStatus().failure(), HasSubstr("disk full"));
}

TEST_F(CoordinatorTest, CountsWorkersThatMayComputeOtherBits) {
  Make();
  Begin({.start_version = 3}, RunFingerprint{"1.13.1", "AVX512", 1});
  ASSERT_THAT(Register(0), IsOk());
  const auto mismatches = [&](int count) {
    return HasSubstr(absl::StrCat("millrace_coordinator_fingerprint_mismatches_total ", count));
  };
  FakeConnection first, alike, other;
  const WorkerId first_id = Attach(&first, "worker-0", 1, "AVX2");
  EXPECT_THAT(metrics_.Render(), mismatches(1)) << "other than the run that is resumed";
  const WorkerId alike_id = Attach(&alike, "worker-1", 1, "AVX2");
  EXPECT_THAT(metrics_.Render(), mismatches(1));
  const WorkerId other_id = Attach(&other, "worker-2", 1, "DEFAULT");
  EXPECT_THAT(metrics_.Render(), mismatches(2));
  for (const WorkerId id : {first_id, alike_id, other_id}) coordinator_->Detach(id);
}

TEST_F(CoordinatorTest, ShutdownEndsEveryConnection) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  coordinator_->Shutdown();
  ASSERT_TRUE(connection.closed.has_value());
  EXPECT_THAT(*connection.closed, StatusIs(absl::StatusCode::kUnavailable));
  coordinator_->Detach(worker);
  v1::Hello hello;
  hello.set_worker("worker-1");
  EXPECT_THAT(coordinator_->Attach(hello, &connection), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace millrace
