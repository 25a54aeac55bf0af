#include "services/parameter_server/coordinator.h"

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
      if (message.has_welcome()) welcomed = true;
      if (message.has_finish()) finish = message.finish();
      if (message.has_lease()) leases.push_back(message.lease());
    }
    return leases;
  }

  std::vector<v1::CoordinatorMessage> sent;
  std::optional<absl::Status> closed;
  bool welcomed = false;
  std::optional<v1::Finish> finish;
};

// Writes down what it is asked for.
class FakeQueue : public CheckpointQueue {
 public:
  explicit FakeQueue(std::vector<std::string>* asked) : asked_(asked) {}
  void Commit(uint64_t version, std::vector<v1::Evaluation> validation, RunFingerprint fingerprint) override {
    asked_->push_back(absl::StrCat("commit ", version, " after ", validation.size(), " evaluations"));
    EXPECT_EQ(fingerprint, (RunFingerprint{"1.13.1", "AVX2", 1}));
  }
  void Export(uint64_t version, std::optional<v1::Evaluation> validation,
              std::optional<v1::Evaluation> test) override {
    asked_->push_back(absl::StrCat("export ", version, validation.has_value() ? " validated" : "",
                                   test.has_value() ? " tested" : ""));
  }
  void Stop() override {}

 private:
  std::vector<std::string>* const asked_;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  void Make(uint32_t num_shards = 1) {
    coordinator_ = std::make_unique<Coordinator>(Coordinator::Options{.num_shards = num_shards,
                                                                      .data_address = "unix:/data",
                                                                      .clock = &clock_,
                                                                      .metrics = &metrics_,
                                                                      .tick_interval = absl::InfiniteDuration()});
  }
  void Begin(const TestPlan& plan = {}, std::optional<RunFingerprint> resumed = std::nullopt) {
    plan_ = plan.Build();
    ASSERT_THAT(coordinator_->Begin(plan_, {},
                                    [this](const v1::JobPlan&, const std::vector<v1::ShardInfo>&) {
                                      return std::make_unique<FakeQueue>(&asked_);
                                    },
                                    std::move(resumed)),
                IsOk());
  }
  absl::StatusOr<v1::RegisterShardResponse> Register(uint32_t shard, uint32_t num_shards = 1,
                                                     uint64_t incarnation = 7) {
    v1::RegisterShardRequest request;
    request.set_shard(shard);
    request.set_num_shards(num_shards);
    request.set_address(absl::StrCat("unix:/shard-", shard));
    request.set_incarnation(incarnation);
    return coordinator_->RegisterShard(request);
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
      result.set_loss_sum(result.samples());
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
  std::string State() { return v1::JobStatus::State_Name(coordinator_->GetStatus().state()); }

  FakeClock clock_;
  Metrics metrics_{"test"};
  v1::JobPlan plan_;
  std::vector<std::string> asked_;
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
  EXPECT_TRUE(early.welcomed);
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, RunsAJobToItsEnd) {
  Make();
  Begin();
  ASSERT_THAT(Register(0), IsOk());
  EXPECT_THAT(coordinator_->GetStatus().waiting_for(), HasSubstr("none is connected"));
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_THAT(asked_, ElementsAre("commit 3 after 0 evaluations", "export 3 validated", "commit 6 after 1 evaluations",
                                  "export 6 validated tested"));
  EXPECT_EQ(State(), "STATE_FINISHING");
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "checkpoint and export of version 3");
  ASSERT_TRUE(connection.finish.has_value());
  EXPECT_FALSE(connection.finish->failed());

  coordinator_->Committed(6, "optimizer-digest");
  coordinator_->Exported(6, "weights-digest");
  coordinator_->Settled(3);
  coordinator_->Settled(6);
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

TEST_F(CoordinatorTest, AResumedEpochEndIsEvaluatedAndExportedAgain) {
  Make();
  Begin({.start_version = 3});
  ASSERT_THAT(Register(0), IsOk());
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  Work(worker, &connection);
  EXPECT_THAT(asked_, ElementsAre("export 3 validated", "commit 6 after 1 evaluations", "export 6 validated tested"));
  coordinator_->Detach(worker);
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
  EXPECT_EQ(coordinator_->GetStatus().waiting_for(), "step 0: slot 0 leased to worker-0, last heard 2.5 s ago");
  coordinator_->Detach(worker);
}

TEST_F(CoordinatorTest, AShardThatLostItsWeightsFailsTheJob) {
  Make();
  Begin();
  ASSERT_THAT(Register(0, 1, 7), IsOk());
  EXPECT_THAT(Register(0, 1, 7), IsOk()) << "asking twice is no harm";
  FakeConnection connection;
  const WorkerId worker = Attach(&connection);
  EXPECT_THAT(Register(0, 1, 8), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--resume")));
  EXPECT_EQ(State(), "STATE_FAILED");
  connection.TakeLeases();
  ASSERT_TRUE(connection.finish.has_value());
  EXPECT_TRUE(connection.finish->failed());
  coordinator_->Detach(worker);
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
