#include "services/worker/work_loop.h"

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/metrics.h"
#include "common/model/replica.h"
#include "common/model/runtime.h"
#include "common/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/worker/fake_coordinator.h"
#include "tests/services/worker/tiny_job.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kSlots = 8;

v1::Lease NewLease(uint64_t id, v1::Lease::Kind kind, uint64_t version, uint32_t begin, uint32_t end) {
  v1::Lease lease;
  lease.set_id(id);
  lease.set_kind(kind);
  lease.set_version(version);
  lease.set_begin(begin);
  lease.set_end(end);
  return lease;
}

v1::Lease Train(uint64_t id, uint64_t version, uint32_t begin, uint32_t end) {
  return NewLease(id, v1::Lease::KIND_TRAIN, version, begin, end);
}

// Gives its events one by one; when they are used up, calls `when_empty`, which adds more or ends the test.
class FakeLeases : public LeaseLink {
 public:
  absl::StatusOr<std::optional<Event>> Next(absl::Duration timeout) override {
    if (events.empty() && timeout > absl::ZeroDuration()) when_idle();
    if (events.empty()) return std::optional<Event>();
    absl::StatusOr<std::optional<Event>> event = std::move(events.front());
    events.pop_front();
    return event;
  }
  void Report(const v1::Report& report) override { reports.push_back(report); }
  void Decline(uint64_t lease_id, std::string_view, bool weights_gone) override {
    declined.push_back(lease_id);
    declined_as_gone += weights_gone ? 1 : 0;
  }
  void Leave() override { left = true; }

  void Add(v1::Lease lease) { events.push_back(std::optional<Event>(std::move(lease))); }
  void Finish(bool failed = false, const std::string& reason = "") {
    v1::Finish finish;
    finish.set_failed(failed);
    finish.set_reason(reason);
    events.push_back(std::optional<Event>(std::move(finish)));
  }

  std::deque<absl::StatusOr<std::optional<Event>>> events;
  std::function<void()> when_idle = [this] { Finish(); };
  std::vector<v1::Report> reports;
  std::vector<uint64_t> declined;
  int declined_as_gone = 0;
  bool left = false;
};

class FakeBatches : public BatchSource {
 public:
  void Prefetch(const std::vector<BatchKey>& keys) override { asked.insert(asked.end(), keys.begin(), keys.end()); }
  absl::StatusOr<v1::Batch> Get(const BatchKey& key, WaitCallback wait) override {
    EXPECT_EQ(std::erase(asked, key), 1u) << key.ToString() << " was not asked for";
    for (int i = 0; i < waits; ++i) {
      if (absl::Status status = wait("a batch"); !status.ok()) return status;
    }
    got.push_back(key);
    return data.Make(key.split, key.epoch, key.step, key.slot);
  }
  void Forget(const std::vector<BatchKey>& keys) override {
    for (const BatchKey& key : keys) std::erase(asked, key);
  }

  FakeDataService data{kTinySide * kTinySide, kSlots};
  std::vector<BatchKey> asked, got;
  int waits = 0;
};

// Is at `version`; every wait for a later one calls `on_wait` until it is there.
class FakeParameters : public ParameterLink {
 public:
  absl::StatusOr<Weights> AwaitVersion(uint64_t wanted, WaitCallback wait) override {
    while (version < wanted) {
      if (absl::Status status = wait(absl::StrCat("weights ", wanted)); !status.ok()) return status;
      on_wait();
    }
    return version == wanted ? Weights::kReady : Weights::kMovedPast;
  }
  absl::StatusOr<uint64_t> AwaitNewest(uint64_t wanted, WaitCallback wait) override {
    if (version >= wanted) return version;
    MILLRACE_RETURN_IF_ERROR(AwaitVersion(wanted, wait).status());
    return version;
  }
  absl::Status Push(const GradientPush& push, WaitCallback wait) override {
    if (absl::Status status = wait("an ack"); !status.ok()) return status;
    pushes.push_back(push);
    on_push(push);
    return absl::OkStatus();
  }

  uint64_t version = 0;
  std::function<void()> on_wait = [this] { ++version; };
  std::function<void(const GradientPush&)> on_push = [](const GradientPush&) {};
  std::vector<GradientPush> pushes;
};

class WorkLoopTest : public ::testing::Test {
 protected:
  static std::unique_ptr<Replica> NewReplica() {
    ConfigureTorch(1);
    std::unique_ptr<Replica> replica = *Replica::Create(TinyJob(kSlots).network());
    replica->InitializeParameters(1);
    return replica;
  }

  std::vector<uint64_t> ReportedLeases() const {
    std::vector<uint64_t> ids;
    for (const v1::Report& report : leases_.reports) ids.push_back(report.lease_id());
    return ids;
  }

  std::unique_ptr<Replica> replica_ = NewReplica();
  FakeLeases leases_;
  FakeBatches batches_;
  FakeParameters parameters_;
  Metrics registry_{"test"};
  WorkerMetrics metrics_{registry_};
  Activity activity_{&RealClock()};
  WorkLoop loop_{TinyJob(kSlots), {replica_.get(), &leases_, &batches_, &parameters_, &activity_, &metrics_}};
};

TEST_F(WorkLoopTest, ComputesPushesAndReportsATrainLease) {
  parameters_.version = 12;
  leases_.Add(Train(5, 12, 2, 4));
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);

  EXPECT_THAT(batches_.got, ElementsAre(BatchKey{v1::SPLIT_TRAIN, 1, 2, 2}, BatchKey{v1::SPLIT_TRAIN, 1, 2, 3}));
  ASSERT_EQ(parameters_.pushes.size(), 1u);
  EXPECT_EQ(parameters_.pushes[0].step, 12u);
  EXPECT_EQ(parameters_.pushes[0].slots, (SlotNode{2, 4}));
  EXPECT_EQ(parameters_.pushes[0].samples, kSlots * FakeDataService::kSamples);

  // The pushed gradient is that of both slots.
  std::vector<float> sum(replica_->table().size());
  for (uint32_t slot : {2, 3}) {
    const v1::Batch batch = batches_.data.Make(v1::SPLIT_TRAIN, 1, 2, slot);
    const auto bytes = [](const std::string& text) {
      return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    };
    ASSERT_THAT(replica_->ComputeGradient(bytes(batch.images()), bytes(batch.labels()), 0), IsOk());
    size_t i = 0;
    for (std::span<const float> piece : replica_->gradient()) {
      for (float value : piece) sum[i++] += value;
    }
  }
  const std::span<const float> pushed = parameters_.pushes[0].gradient->span();
  EXPECT_EQ(sum, std::vector<float>(pushed.begin(), pushed.end()));

  ASSERT_EQ(leases_.reports.size(), 1u);
  const v1::Report& report = leases_.reports[0];
  EXPECT_EQ(report.lease_id(), 5u);
  ASSERT_EQ(report.results_size(), 2);
  EXPECT_EQ(report.results(1).unit(), 3u);
  EXPECT_EQ(report.results(1).samples(), FakeDataService::kSamples);
  EXPECT_GT(report.results(1).loss_sum(), 0);
  EXPECT_NE(report.results(0).checksum(), report.results(1).checksum());
  EXPECT_EQ(report.results(1).visits(), batches_.data.Make(v1::SPLIT_TRAIN, 1, 2, 3).visits());
  EXPECT_NE(report.results(1).visits(), 0u);
  EXPECT_GT(report.compute_seconds(), 0);
  EXPECT_EQ(metrics_.train_samples.Value(), 4);
}

// Remembers what noise it was to compute with.
class ListeningModel final : public TrainableModel {
 public:
  explicit ListeningModel(TrainableModel* model) : model_(model) {}
  uint64_t parameter_count() const override { return model_->parameter_count(); }
  absl::StatusOr<BatchResult> ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                              uint64_t noise_seed) override {
    noise_seeds.push_back(noise_seed);
    return model_->ComputeGradient(images, labels, noise_seed);
  }
  std::span<const std::span<const float>> gradient() const override { return model_->gradient(); }
  absl::StatusOr<BatchResult> Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) override {
    return model_->Evaluate(images, labels);
  }

  std::vector<uint64_t> noise_seeds;

 private:
  TrainableModel* const model_;
};

TEST_F(WorkLoopTest, EverySlotOfEveryStepHasANoiseOfItsOwn) {
  ListeningModel model(replica_.get());
  v1::JobPlan plan = TinyJob(kSlots);
  plan.mutable_spec()->set_seed(7);
  WorkLoop loop(plan, {&model, &leases_, &batches_, &parameters_, &activity_, &metrics_});
  leases_.Add(Train(1, 0, 0, 2));
  leases_.Add(Train(2, 1, 0, 1));
  EXPECT_EQ(*loop.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(model.noise_seeds,
              ElementsAre(WorkLoop::NoiseSeed(7, 0, 0), WorkLoop::NoiseSeed(7, 0, 1), WorkLoop::NoiseSeed(7, 1, 0)));
}

TEST(NoiseSeedTest, DependsOnEveryBitOfSeedStepAndSlot) {
  // From a second implementation of Philox, in another language.
  EXPECT_EQ(WorkLoop::NoiseSeed(1, 0, 0), 13892541631431449664u);
  EXPECT_EQ(WorkLoop::NoiseSeed((uint64_t{1} << 40) + 5, (uint64_t{1} << 33) + 1, 3), 12559735756561172369u);
}

TEST_F(WorkLoopTest, EvaluatesWithoutPushing) {
  parameters_.version = 3;
  leases_.Add(NewLease(9, v1::Lease::KIND_TEST, 3, 4, 6));
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(batches_.got, ElementsAre(BatchKey{v1::SPLIT_TEST, 0, 4, 0}, BatchKey{v1::SPLIT_TEST, 0, 5, 0}));
  EXPECT_THAT(parameters_.pushes, IsEmpty());
  ASSERT_EQ(leases_.reports.size(), 1u);
  EXPECT_EQ(leases_.reports[0].results(0).unit(), 4u);
  EXPECT_EQ(leases_.reports[0].results(0).checksum(), 0u);
  EXPECT_EQ(leases_.reports[0].results(0).visits(), 0u);
  EXPECT_EQ(metrics_.test_samples.Value(), 4);
}

TEST_F(WorkLoopTest, TheSameSlotGivesTheSameChecksum) {
  leases_.Add(Train(1, 0, 0, 8));
  bool again = true;
  leases_.when_idle = [&] {
    again ? leases_.Add(Train(2, 0, 3, 4)) : leases_.Finish();
    again = false;
  };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  ASSERT_EQ(leases_.reports.size(), 2u);
  EXPECT_EQ(leases_.reports[0].results(3).checksum(), leases_.reports[1].results(0).checksum());
}

TEST_F(WorkLoopTest, AsksForTheNextBatchesWhileAnEarlierLeaseIsInProgress) {
  leases_.Add(Train(1, 0, 0, 1));
  leases_.Add(Train(2, 1, 0, 1));
  parameters_.on_push = [&](const GradientPush& push) {
    if (push.step == 0) {
      EXPECT_THAT(batches_.asked, ElementsAre(BatchKey{v1::SPLIT_TRAIN, 0, 1, 0}));
    }
  };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(ReportedLeases(), ElementsAre(1, 2));
}

// No lease of an epoch's first step comes while the evaluation before it is open. Its batches must travel meanwhile.
TEST_F(WorkLoopTest, AsksForTheNextEpochsFirstBatchesWithTheEvaluationsBatches) {
  v1::JobPlan plan = TinyJob(kSlots);
  plan.set_total_steps(20);
  WorkLoop loop(plan, {replica_.get(), &leases_, &batches_, &parameters_, &activity_, &metrics_});
  const BatchKey first = {v1::SPLIT_TRAIN, 1, 0, 2}, second = {v1::SPLIT_TRAIN, 1, 0, 3};
  leases_.Add(Train(1, 9, 2, 4));
  leases_.Add(NewLease(2, v1::Lease::KIND_VALIDATION, 10, 0, 1));
  std::vector<std::vector<BatchKey>> asked_when_idle;
  leases_.when_idle = [&] {
    asked_when_idle.push_back(batches_.asked);
    if (asked_when_idle.size() == 1) {
      EXPECT_THAT(ReportedLeases(), ElementsAre(1, 2));
      leases_.Add(Train(3, 10, 2, 3));
    } else if (asked_when_idle.size() == 2) {
      leases_.Add(Train(4, 11, 0, 1));  // the guess was half wrong: slot 3 is another worker's
    } else {
      leases_.Finish();
    }
  };
  EXPECT_EQ(*loop.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(asked_when_idle, ElementsAre(ElementsAre(first, second), ElementsAre(second), IsEmpty()));
  EXPECT_THAT(ReportedLeases(), ElementsAre(1, 2, 3, 4));
}

TEST_F(WorkLoopTest, AsksForNothingBehindTheLastEpochAndForgetsWhatItGuessed) {
  leases_.Add(Train(1, 9, 0, 8));
  leases_.Add(NewLease(2, v1::Lease::KIND_VALIDATION, 10, 0, 1));  // of ten steps
  leases_.when_idle = [&] {
    EXPECT_THAT(batches_.asked, IsEmpty());
    leases_.Finish();
  };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);

  v1::JobPlan plan = TinyJob(kSlots);
  plan.set_total_steps(20);
  WorkLoop drained(plan, {replica_.get(), &leases_, &batches_, &parameters_, &activity_, &metrics_});
  parameters_.version = 9;
  leases_.Add(Train(3, 9, 0, 8));
  leases_.Add(NewLease(4, v1::Lease::KIND_VALIDATION, 10, 0, 1));
  leases_.when_idle = [&] {
    EXPECT_EQ(batches_.asked.size(), 8u);
    drained.Drain();
  };
  EXPECT_EQ(*drained.Run(), WorkLoop::End::kDrained);
  EXPECT_THAT(batches_.asked, IsEmpty());
}

TEST_F(WorkLoopTest, DeclinesALeaseWhoseWeightsHaveMovedPast) {
  parameters_.version = 8;
  leases_.Add(Train(1, 7, 0, 1));
  leases_.Add(Train(2, 8, 0, 1));
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(leases_.declined, ElementsAre(1));
  EXPECT_EQ(leases_.declined_as_gone, 1);
  EXPECT_THAT(ReportedLeases(), ElementsAre(2));
  EXPECT_THAT(batches_.asked, IsEmpty());
}

TEST_F(WorkLoopTest, AnOlderLeaseGoesFirst) {
  // Weights 1 come only when the lease of step 0, which another worker lost, is done.
  leases_.Add(Train(1, 1, 0, 1));
  int waits = 0;
  parameters_.on_wait = [&] {
    if (++waits == 2) leases_.Add(Train(2, 0, 4, 8));
  };
  parameters_.on_push = [&](const GradientPush& push) { parameters_.version = push.step + 1; };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(ReportedLeases(), ElementsAre(2, 1));
  EXPECT_THAT(leases_.declined, IsEmpty());
}

TEST_F(WorkLoopTest, AVersionIsEvaluatedBeforeItIsTrainedOn) {
  parameters_.on_push = [&](const GradientPush& push) { parameters_.version = push.step + 1; };
  leases_.Add(Train(1, 0, 0, 8));
  leases_.Add(NewLease(2, v1::Lease::KIND_VALIDATION, 0, 0, 1));
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(ReportedLeases(), ElementsAre(2, 1));
}

TEST_F(WorkLoopTest, DrainFinishesTheLeaseInProgressAndDeclinesTheRest) {
  leases_.Add(Train(1, 0, 0, 1));
  leases_.Add(Train(2, 1, 0, 1));
  parameters_.on_push = [&](const GradientPush&) { loop_.Drain(); };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kDrained);
  EXPECT_THAT(ReportedLeases(), ElementsAre(1));
  EXPECT_THAT(leases_.declined, ElementsAre(2));
  EXPECT_EQ(leases_.declined_as_gone, 0);
  EXPECT_TRUE(leases_.left);
  EXPECT_THAT(batches_.asked, IsEmpty());
}

TEST_F(WorkLoopTest, DrainDoesNotWaitForWeights) {
  leases_.Add(Train(1, 5, 0, 1));
  parameters_.on_wait = [&] { loop_.Drain(); };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kDrained);
  EXPECT_THAT(leases_.declined, ElementsAre(1));
}

TEST_F(WorkLoopTest, StopEndsAnyWait) {
  leases_.Add(Train(1, 0, 0, 1));
  batches_.waits = 1000;
  loop_.Stop();
  EXPECT_THAT(loop_.Run(), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(WorkLoopTest, AFailedJobEndsAnyWait) {
  leases_.Add(Train(1, 5, 0, 1));
  parameters_.on_wait = [&] { leases_.Finish(/*failed=*/true, "disk full"); };
  EXPECT_THAT(loop_.Run(), StatusIs(absl::StatusCode::kAborted, HasSubstr("disk full")));
}

TEST_F(WorkLoopTest, ALostCoordinatorEndsTheLoop) {
  leases_.Add(Train(1, 5, 0, 1));
  parameters_.on_wait = [&] { leases_.events.push_back(absl::UnavailableError("lost")); };
  EXPECT_THAT(loop_.Run(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(batches_.asked, IsEmpty());
}

TEST_F(WorkLoopTest, RefusesLeasesThatMakeNoSense) {
  for (const v1::Lease& lease : {Train(1, 0, 1, 3), Train(1, 0, 0, 9), Train(1, 0, 2, 2), Train(0, 0, 0, 1),
                                 NewLease(1, v1::Lease::KIND_UNSPECIFIED, 0, 0, 1)}) {
    FakeLeases leases;
    leases.Add(lease);
    WorkLoop loop(TinyJob(kSlots), {replica_.get(), &leases, &batches_, &parameters_, &activity_, &metrics_});
    EXPECT_THAT(loop.Run(), StatusIs(absl::StatusCode::kInternal, HasSubstr("makes no sense"))) << lease.DebugString();
  }
}

TEST_F(WorkLoopTest, SaysWhatItWaitsFor) {
  std::vector<std::string> lines;
  leases_.when_idle = [&] {
    lines.push_back(activity_.waiting_for());
    leases_.Finish();
  };
  leases_.Add(Train(1, 1, 0, 1));
  parameters_.on_wait = [&] {
    lines.push_back(activity_.waiting_for());
    ++parameters_.version;
  };
  EXPECT_EQ(*loop_.Run(), WorkLoop::End::kFinished);
  EXPECT_THAT(lines, ElementsAre("weights 1", "a lease"));
}

TEST_F(WorkLoopTest, ComputesAStaleStepOnItsOlderWeights) {
  parameters_.version = 10;
  v1::Lease lease = Train(5, 12, 0, 1);
  lease.set_staleness(2);
  leases_.Add(lease);
  ASSERT_THAT(loop_.Run(), IsOk());
  ASSERT_EQ(parameters_.pushes.size(), 1u);
  EXPECT_EQ(parameters_.pushes[0].step, 12u);
  EXPECT_EQ(parameters_.pushes[0].weights_version, 10u);
  EXPECT_EQ(batches_.got[0].step, 12 % TinyJob(kSlots).steps_per_epoch());
}

TEST_F(WorkLoopTest, TakesNewerWeightsWhereTheLeaseAllowsIt) {
  parameters_.version = 14;
  v1::Lease lease = Train(5, 12, 0, 1);
  lease.set_staleness(12);
  lease.set_newest(true);
  leases_.Add(lease);
  ASSERT_THAT(loop_.Run(), IsOk());
  EXPECT_THAT(leases_.declined, testing::IsEmpty());
  ASSERT_EQ(parameters_.pushes.size(), 1u);
  EXPECT_EQ(parameters_.pushes[0].weights_version, 14u);
}

}  // namespace
}  // namespace millrace
