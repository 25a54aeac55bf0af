// What a job counts of its visits, and what it says when they are not what they should be.
#include <optional>
#include <vector>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/parameter_server/coordinator.h"
#include "tests/services/parameter_server/no_queue.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class Connection : public WorkerConnection {
 public:
  void Send(const v1::CoordinatorMessage& message) override {
    if (message.has_lease()) leases.push_back(message.lease());
  }
  void Close(const absl::Status&) override {}
  std::deque<v1::Lease> leases;
};

class CoordinatorVisitsTest : public testing::Test {
 protected:
  CoordinatorVisitsTest() {
    EXPECT_THAT(coordinator_.Begin(
                    plan_, {},
                    [](const v1::JobPlan&, const std::vector<v1::ShardInfo>&) { return std::make_unique<NoQueue>(); },
                    [] { return RunStart(); }),
                IsOk());
    v1::RegisterShardRequest request;
    request.set_num_shards(1);
    request.set_address("unix:/shard-0");
    request.set_incarnation(7);
    request.set_serving_run_id(coordinator_.RegisterShard(request).value().plan().run_id());
    EXPECT_THAT(coordinator_.RegisterShard(request), IsOk());
    v1::Hello hello;
    hello.set_worker("worker-0");
    worker_ = coordinator_.Attach(hello, &connection_).value();
  }
  ~CoordinatorVisitsTest() override { coordinator_.Detach(worker_); }

  void Work() {
    while (!connection_.leases.empty()) {
      const v1::Lease lease = connection_.leases.front();
      connection_.leases.pop_front();
      v1::WorkerMessage message;
      message.mutable_report()->set_lease_id(lease.id());
      for (uint32_t unit = lease.begin(); unit < lease.end(); ++unit) {
        v1::UnitResult& result = *message.mutable_report()->add_results();
        result.set_unit(unit);
        result.set_samples(UnitSamples(plan_, {lease.kind(), lease.version()}, unit));
        if (lease.kind() == v1::Lease::KIND_TRAIN) result.set_visits(1000 * lease.version() + unit);
      }
      EXPECT_THAT(coordinator_.Receive(worker_, message), IsOk());
    }
  }

  FakeClock clock_;
  Metrics metrics_{"test"};
  const v1::JobPlan plan_ = TestPlan{.epochs = 1}.Build();  // 3 steps of 4 slots
  std::vector<v1::VisitCheck> asked_;
  Coordinator coordinator_{
      {.data_addresses = {"unix:/data"},
       .clock = &clock_,
       .metrics = &metrics_,
       .tick_interval = absl::InfiniteDuration(),
       .ask_visits = [this](const v1::JobPlan&, const v1::VisitCheck& check) { asked_.push_back(check); }}};
  Connection connection_;
  WorkerId worker_ = 0;
};

TEST_F(CoordinatorVisitsTest, TheVisitsOfAnEpochAreSummedAndAskedFor) {
  Work();
  ASSERT_THAT(asked_, SizeIs(1));
  EXPECT_EQ(asked_[0].samples(), 40u);
  EXPECT_EQ(asked_[0].visits(), 4 * (0 + 1000 + 2000) + 3 * (0 + 1 + 2 + 3));
  ASSERT_THAT(coordinator_.GetStatus().visit_checks(), SizeIs(1));
  EXPECT_EQ(coordinator_.GetStatus().visit_checks(0).expected_samples(), 0u) << "not answered yet";

  v1::VisitCheck answer = asked_[0];
  answer.set_expected_samples(40);
  answer.set_expected_visits(answer.visits());
  coordinator_.VisitsExpected(answer);
  EXPECT_EQ(coordinator_.GetStatus().visit_checks(0).expected_samples(), 40u);
  EXPECT_EQ(coordinator_.GetStatus().visit_mismatches(), 0u);
}

TEST_F(CoordinatorVisitsTest, ADifferenceIsSaidAloud) {
  Work();
  ASSERT_THAT(asked_, SizeIs(1));
  v1::VisitCheck answer = asked_[0];
  answer.set_expected_samples(40);
  answer.set_expected_visits(answer.visits() + 1);
  testing::internal::CaptureStderr();
  coordinator_.VisitsExpected(answer);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("VISITS DIFFER"));
  EXPECT_EQ(coordinator_.GetStatus().visit_mismatches(), 1u);
  clock_.Advance(absl::Seconds(1));
  coordinator_.Tick();
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_coordinator_visit_mismatches_total 1"));
}

}  // namespace
}  // namespace millrace
