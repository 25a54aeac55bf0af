// A whole worker against a fake cluster: the real clients, over real connections.
#include "services/worker/worker.h"

#include "common/metrics.h"
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/worker/fake_coordinator.h"
#include "tests/services/worker/fake_parameter_server.h"
#include "tests/services/worker/tiny_job.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using Kind = v1::WorkerMessage;

constexpr uint32_t kSlots = 4;

class WorkerTest : public ::testing::Test {
 protected:
  WorkerTest() {
    ConfigureTorch(1);
    v1::JobPlan& plan = *welcome_.mutable_plan();
    plan = TinyJob(kSlots);
    plan.mutable_spec()->set_batch_size(kSlots * FakeDataService::kSamples);
    plan.set_run_id(77);
    plan.set_parameter_count(NetworkParameters(plan.network())->size());
    shard_ = std::make_unique<FakeParameterServer>(Socket("shard"), 0, plan.parameter_count());
    const std::vector<float> initial = *InitialParameters(plan.network(), 1);
    shard_->weights_ = initial;
    shard_->apply_ = [this](const FakeParameterServer::Push& push) { shard_->version_ = push.step + 1; };
    *welcome_.add_shards() = shard_->info();
    welcome_.add_data_addresses(Socket("main"));
    welcome_.set_heartbeat_interval_ms(50);
  }

  std::string Socket(const std::string& name) const { return absl::StrCat("unix:", (directory_ / name).string()); }

  void StartCoordinator() { coordinator_ = std::make_unique<FakeCoordinator>(Socket("main"), welcome_, &data_); }
  void StartWorker(absl::Duration coordinator_timeout = absl::Seconds(10)) {
    worker_ = std::make_unique<Worker>(
        Worker::Options{.coordinator = Socket("main"), .name = "w", .coordinator_timeout = coordinator_timeout},
        &context_);
    ASSERT_THAT(worker_->Started({}), IsOk());
  }
  // Until the worker asks for the end of the process; its reason.
  absl::Status AwaitEnd() {
    EXPECT_EQ(signals_.WaitFor(absl::Seconds(10)), 0);
    return context_.stop_reason();
  }

  TemporaryDirectory directory_;
  v1::Welcome welcome_;
  FakeDataService data_{kTinySide * kTinySide, kSlots};
  std::unique_ptr<FakeParameterServer> shard_;
  std::unique_ptr<FakeCoordinator> coordinator_;
  Metrics metrics_{"millrace-worker"};
  ShutdownSignals signals_;
  ServiceContext context_{metrics_, signals_};
  std::unique_ptr<Worker> worker_;
};

TEST_F(WorkerTest, WorksUntilTheJobIsDone) {
  StartCoordinator();
  StartWorker();
  const v1::WorkerMessage hello = coordinator_->Await(Kind::kHello);
  EXPECT_EQ(hello.hello().worker(), "w");
  EXPECT_NE(hello.hello().incarnation(), 0u);
  EXPECT_EQ(hello.hello().process_id(), getpid());
  EXPECT_EQ(hello.hello().torch_version(), TorchVersion());
  EXPECT_EQ(hello.hello().cpu_capability(), CpuCapability());
  EXPECT_EQ(hello.hello().threads(), 1u);
  for (uint64_t step = 0; step < 3; ++step) {
    coordinator_->Grant(10 + step, v1::Lease::KIND_TRAIN, step, 0, kSlots);
  }
  for (uint64_t step = 0; step < 3; ++step) {
    const v1::WorkerMessage report = coordinator_->Await(Kind::kReport);
    EXPECT_EQ(report.report().lease_id(), 10 + step);
    EXPECT_EQ(report.report().results_size(), static_cast<int>(kSlots));
  }
  EXPECT_EQ(shard_->pushes().size(), 3u);
  EXPECT_THAT(worker_->Ready(), IsOk());
  EXPECT_THAT(worker_->StatusPage(), HasSubstr("tiny (cnn, 10 steps of 8 samples in 4 slots)"));
  coordinator_->Finish(false);
  EXPECT_THAT(AwaitEnd(), IsOk());
  EXPECT_THAT(worker_->StatusPage(), HasSubstr("3 finished, 0 declined"));
}

TEST_F(WorkerTest, BeatsAndSaysWhatItWaitsFor) {
  StartCoordinator();
  StartWorker();
  std::string line;
  for (int i = 0; i < 100 && line != "a lease"; ++i) {
    line = coordinator_->Await(Kind::kHeartbeat).heartbeat().waiting_for();
  }
  EXPECT_EQ(line, "a lease");
}

TEST_F(WorkerTest, AFailedJobIsAFailure) {
  StartCoordinator();
  StartWorker();
  coordinator_->Finish(true, "the disk is full");
  EXPECT_THAT(AwaitEnd(), StatusIs(absl::StatusCode::kAborted, HasSubstr("the disk is full")));
}

TEST_F(WorkerTest, ComesBackAfterALostConnection) {
  StartCoordinator();
  StartWorker();
  const v1::WorkerMessage first = coordinator_->Await(Kind::kHello);
  coordinator_->Drop();
  const v1::WorkerMessage second = coordinator_->Await(Kind::kHello);
  EXPECT_EQ(second.hello().incarnation(), first.hello().incarnation());
  coordinator_->Grant(1, v1::Lease::KIND_TRAIN, 0, 0, kSlots);
  EXPECT_EQ(coordinator_->Await(Kind::kReport).report().lease_id(), 1u);
}

TEST_F(WorkerTest, WaitsForACoordinatorThatIsNotThereYet) {
  StartWorker();
  EXPECT_THAT(worker_->Ready(), StatusIs(absl::StatusCode::kUnavailable));
  StartCoordinator();
  EXPECT_EQ(coordinator_->Await(Kind::kHello).hello().worker(), "w");
}

TEST_F(WorkerTest, GivesUpOnAnAbsentCoordinator) {
  StartWorker(/*coordinator_timeout=*/absl::Milliseconds(300));
  EXPECT_THAT(AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no coordinator at unix:")));
}

TEST_F(WorkerTest, ANetworkOfAnotherSizeIsFatal) {
  welcome_.mutable_plan()->set_parameter_count(5);
  StartCoordinator();
  StartWorker();
  EXPECT_THAT(AwaitEnd(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the coordinator says 5")));
}

TEST_F(WorkerTest, EndsWhenSentAway) {
  StartCoordinator();
  coordinator_->turn_away_ = {grpc::StatusCode::INVALID_ARGUMENT, "a result that cannot be"};
  StartWorker();
  EXPECT_THAT(AwaitEnd(),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("sent this worker away: a result that cannot be")));
}

TEST_F(WorkerTest, AShardOfAnotherRunOnlyEndsTheSession) {
  shard_->refusal_ = {grpc::StatusCode::FAILED_PRECONDITION, "another run"};
  StartCoordinator();
  StartWorker();
  EXPECT_TRUE(coordinator_->Await(Kind::kHello).has_hello());
  coordinator_->Grant(1, v1::Lease::KIND_TRAIN, 0, 0, kSlots);
  EXPECT_TRUE(coordinator_->Await(Kind::kHello).has_hello()) << "the worker did not join again";
  EXPECT_THAT(context_.stop_reason(), IsOk());
}

TEST_F(WorkerTest, DrainsBetweenLeases) {
  StartCoordinator();
  StartWorker();
  coordinator_->Grant(1, v1::Lease::KIND_TRAIN, 0, 0, kSlots);
  EXPECT_EQ(coordinator_->Await(Kind::kReport).report().lease_id(), 1u);
  worker_->Drain(absl::Seconds(5));
  EXPECT_TRUE(coordinator_->Await(Kind::kLeave).has_leave());
  worker_.reset();
}

TEST_F(WorkerTest, DrainGivesUpAShardThatNeverAnswers) {
  shard_->mute_ = true;
  StartCoordinator();
  StartWorker();
  coordinator_->Grant(1, v1::Lease::KIND_TRAIN, 0, 0, kSlots);
  ASSERT_TRUE(Eventually([&] { return worker_->StatusPage().find("acknowledgement") != std::string::npos; }));
  const absl::Time begin = absl::Now();
  worker_->Drain(absl::Milliseconds(200));
  worker_.reset();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

}  // namespace
}  // namespace millrace
