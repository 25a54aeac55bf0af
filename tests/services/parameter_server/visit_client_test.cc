#include "services/parameter_server/visit_client.h"

#include <atomic>
#include <memory>

#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.grpc.pb.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/eventually.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::SizeIs;

v1::VisitCheck Check(uint64_t epoch, uint64_t begin, uint64_t end) {
  v1::VisitCheck check;
  check.set_epoch(epoch);
  check.set_begin(begin);
  check.set_end(end);
  return check;
}

TEST(VisitRequestsTest, AWholeEpochIsOneRequest) {
  const auto requests = VisitRequests(TestPlan().Build(), Check(1, 3, 6));
  ASSERT_THAT(requests, SizeIs(1));
  EXPECT_EQ(requests[0].epoch(), 1u);
  EXPECT_EQ(requests[0].step(), 0u);
  EXPECT_EQ(requests[0].steps(), 3u);
  EXPECT_EQ(requests[0].plan().slots(), 4u);
  EXPECT_FALSE(requests[0].plan().fingerprint().empty());
}

TEST(VisitRequestsTest, PartsAreCutIntoRequestsOfBoundedCost) {
  const v1::JobPlan plan = TestPlan{.batch_size = 60'000, .train_count = 60'000 * 100}.Build();
  EXPECT_THAT(VisitRequests(plan, Check(0, 0, 100)), SizeIs(1)) << "6,000,000 samples, from the files";
  const auto requests = VisitRequests(plan, Check(2, 230, 249));
  ASSERT_THAT(requests, SizeIs(3));
  EXPECT_EQ(requests[0].step(), 30u);
  EXPECT_EQ(requests[0].steps(), 8u);
  EXPECT_EQ(requests[2].step(), 46u);
  EXPECT_EQ(requests[2].steps(), 3u);
  const v1::JobPlan large = TestPlan{.batch_size = 60'000, .train_count = 60'000 * 1000}.Build();
  EXPECT_THAT(VisitRequests(large, Check(0, 0, 1000)), SizeIs(125));
}

class FakeDataService : public v1::DataService::Service {
 public:
  grpc::Status ExpectVisits(grpc::ServerContext*, const v1::ExpectedVisitsRequest* request,
                            v1::ExpectedVisits* response) override {
    ++calls;
    if (refuse) return {grpc::StatusCode::UNIMPLEMENTED, "of an earlier build"};
    response->set_samples(request->steps());
    response->set_visits(100 + request->epoch());
    return grpc::Status::OK;
  }
  std::atomic<int> calls = 0;
  std::atomic<bool> refuse = false;
};

class VisitClientTest : public testing::Test {
 protected:
  std::unique_ptr<GrpcServer> Serve(FakeDataService& service) {
    return GrpcServer::Start({.address = address_}, {&service}).value();
  }
  VisitClient::Answer Keep() {
    return [this](const v1::VisitCheck& check) { last_ = check.expected_visits(), ++answers_; };
  }

  const TemporaryDirectory directory_;
  const std::string address_ = "unix:" + (directory_ / "data").string();
  std::atomic<uint64_t> last_ = 0;
  std::atomic<int> answers_ = 0;
  const v1::JobPlan plan_ = TestPlan().Build();
};

TEST_F(VisitClientTest, AsksUntilTheServiceIsThere) {
  VisitClient client({address_}, Keep());
  client.Ask(plan_, Check(5, 15, 18));
  EXPECT_EQ(answers_, 0);
  FakeDataService service;
  const auto server = Serve(service);
  ASSERT_TRUE(Eventually([&] { return answers_ == 1; }));
  EXPECT_EQ(last_, 105u);
}

TEST_F(VisitClientTest, AsksAnotherReplicaIfOneIsAway) {
  FakeDataService service;
  const auto server = Serve(service);
  VisitClient client({"unix:" + (directory_ / "nobody").string(), address_}, Keep());
  client.Ask(plan_, Check(6, 18, 21));
  ASSERT_TRUE(Eventually([&] { return answers_ == 1; }));
}

TEST_F(VisitClientTest, ARefusalEndsTheQuestionAndNotTheNextOnes) {
  FakeDataService service;
  service.refuse = true;
  const auto server = Serve(service);
  VisitClient client({address_}, Keep());
  client.Ask(plan_, Check(0, 0, 3));
  ASSERT_TRUE(Eventually([&] { return service.calls == 1; }));
  service.refuse = false;
  client.Ask(plan_, Check(1, 3, 6));
  ASSERT_TRUE(Eventually([&] { return answers_ == 1; }));
  EXPECT_EQ(last_, 101u);
}

TEST_F(VisitClientTest, EndsWithoutAnAnswer) {
  VisitClient client({address_}, Keep());
  for (uint64_t epoch = 0; epoch < 2 * VisitClient::kWaitingMax; ++epoch) {
    client.Ask(plan_, Check(epoch, 3 * epoch, 3 * epoch + 3));
  }
}

}  // namespace
}  // namespace millrace
