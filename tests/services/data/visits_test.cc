#include "services/data/visits.h"

#include <set>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "services/data/data_service.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(VisitHashTest, GoldenValues) {
  // Outputs 0, 1 and 2^32 of SplitMix64, found with another program from the definition in the header.
  EXPECT_EQ(VisitHash(0, 0)(0), 0x238275bc38fcbe91u);
  EXPECT_EQ(VisitHash(0, 0)(1), 0xf89a2566b5822c54u);
  EXPECT_EQ(VisitHash(7, 3)(uint64_t{1} << 32), 0x652a928d75e43d2du);
}

TEST(VisitHashTest, SeedsEpochsAndSamplesDiffer) {
  std::set<uint64_t> hashes;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (uint64_t epoch = 0; epoch < 10; ++epoch) {
      for (uint64_t sample = 0; sample < 100; ++sample) hashes.insert(VisitHash(seed, epoch)(sample));
    }
  }
  EXPECT_EQ(hashes.size(), 10'000u);
}

class ExpectVisitsTest : public TinyDataTest {
 protected:
  ExpectVisitsTest() { *request_.mutable_plan() = plan_; }

  v1::ExpectedVisits Expect(uint64_t epoch, uint64_t step, uint64_t steps) {
    request_.set_epoch(epoch);
    request_.set_step(step);
    request_.set_steps(steps);
    return ExpectVisits(*dataset_, request_).value();
  }
  v1::ExpectedVisits Served(uint64_t epoch, uint64_t step, uint64_t steps) const {
    const BatchSchedule schedule = ScheduleFor(*dataset_, plan_).value();
    v1::ExpectedVisits sum;
    for (uint64_t i = step; i < step + steps; ++i) {
      for (uint32_t slot = 0; slot < plan_.slots(); ++slot) {
        const BatchSamples batch = schedule.SamplesOf({v1::SPLIT_TRAIN, epoch, i, slot});
        uint64_t visits = 0;
        for (const uint64_t sample : batch.indices) visits += VisitHash(plan_.seed(), epoch)(sample);
        EXPECT_EQ(batch.visits, visits);
        sum.set_samples(sum.samples() + batch.indices.size());
        sum.set_visits(sum.visits() + batch.visits);
      }
    }
    return sum;
  }

  v1::ExpectedVisitsRequest request_;
};

// The one is found from the files, the other is what the batches of the epoch, in their shuffled order, carry.
TEST_F(ExpectVisitsTest, AnEpochsBatchesAddUpToTheFilesLessTheValidationSamples) {
  for (uint64_t epoch = 0; epoch < 20; ++epoch) {
    const v1::ExpectedVisits expected = Expect(epoch, 0, 6), served = Served(epoch, 0, 6);
    EXPECT_EQ(expected.samples(), 90u);
    EXPECT_EQ(served.samples(), 90u);
    EXPECT_EQ(expected.visits(), served.visits());
  }
  EXPECT_NE(Expect(0, 0, 6).visits(), Expect(1, 0, 6).visits());
}

TEST_F(ExpectVisitsTest, PartsOfAnEpochAddUpToIt) {
  const v1::ExpectedVisits begin = Expect(4, 0, 2), rest = Expect(4, 2, 4), whole = Expect(4, 0, 6);
  EXPECT_EQ(begin.samples(), 32u);
  EXPECT_EQ(begin.visits(), Served(4, 0, 2).visits());
  EXPECT_EQ(begin.samples() + rest.samples(), whole.samples());
  EXPECT_EQ(begin.visits() + rest.visits(), whole.visits());
}

TEST_F(ExpectVisitsTest, AVisitTooManyOrTooFewShows) {
  const uint64_t whole = Expect(0, 0, 6).visits();
  const VisitHash hash(plan_.seed(), 0);
  EXPECT_NE(whole + hash(5), whole);
  EXPECT_NE(whole - hash(5) + hash(6), whole) << "one twice, another never";
}

TEST_F(ExpectVisitsTest, OtherSplitsHaveNone) {
  const BatchSchedule schedule = ScheduleFor(*dataset_, plan_).value();
  EXPECT_EQ(schedule.SamplesOf({v1::SPLIT_VALIDATION, 0, 0, 0}).visits, 0u);
  EXPECT_EQ(schedule.SamplesOf({v1::SPLIT_TEST, 0, 0, 0}).visits, 0u);
}

TEST_F(ExpectVisitsTest, RefusesWhatDoesNotExist) {
  request_.set_steps(0);
  EXPECT_THAT(ExpectVisits(*dataset_, request_), StatusIs(absl::StatusCode::kOutOfRange));
  request_.set_steps(7);
  EXPECT_THAT(ExpectVisits(*dataset_, request_), StatusIs(absl::StatusCode::kOutOfRange));
  request_.set_steps(6);
  request_.mutable_plan()->set_fingerprint("another");
  EXPECT_THAT(ExpectVisits(*dataset_, request_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not the one with fingerprint another")));
  request_.mutable_plan()->clear_fingerprint();
  request_.mutable_plan()->set_slots(0);
  EXPECT_THAT(ExpectVisits(*dataset_, request_), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ExpectVisitsTest, IsServed) {
  Metrics metrics("visits_test");
  DataMetrics data_metrics(metrics);
  DataService service(data_metrics);
  service.SetDataset(dataset_);
  const auto server = GrpcServer::Start({.address = "unix:" + (directory_ / "s").string()}, {&service}).value();
  const auto stub = v1::DataService::NewStub(MakeChannel(server->address()));
  const v1::ExpectedVisits expected = Expect(2, 1, 3);
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(30));
  v1::ExpectedVisits answer;
  ASSERT_THAT(FromGrpcStatus(stub->ExpectVisits(&context, request_, &answer)), IsOk());
  EXPECT_EQ(answer.samples(), expected.samples());
  EXPECT_EQ(answer.visits(), expected.visits());
}

}  // namespace
}  // namespace millrace
