#include "services/parameter_server/norm_exchange.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "millrace/v1/parameter.grpc.pb.h"
#include "services/parameter_server/norm_client.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

SquaredNorm Norm(double square) {
  SquaredNorm norm;
  norm.sum.Add(square);
  return norm;
}

// What an asker was told; nothing yet at first.
using Told = std::shared_ptr<std::optional<absl::StatusOr<SquaredNorm>>>;

Told Ask(NormRendezvous& rendezvous, uint32_t shard, uint64_t step, double square) {
  auto told = std::make_shared<std::optional<absl::StatusOr<SquaredNorm>>>();
  rendezvous.Receive(shard, step, Norm(square), [told](const absl::StatusOr<SquaredNorm>& total) {
    EXPECT_FALSE(told->has_value()) << "answered twice";
    *told = total;
  });
  return told;
}

TEST(NormRendezvousTest, AllAreAnsweredWhenTheLastHasCome) {
  NormRendezvous rendezvous(3);
  std::optional<double> own;
  const Told second = Ask(rendezvous, 2, 5, 4);
  EXPECT_EQ(rendezvous.WaitingFor(), "the norm of shard 0");
  rendezvous.Sum(5, Norm(9), [&](const SquaredNorm& total) { own = total.norm(); });
  EXPECT_EQ(rendezvous.WaitingFor(), "the norm of shard 1");
  EXPECT_FALSE(second->has_value());
  EXPECT_FALSE(own.has_value());
  const Told first = Ask(rendezvous, 1, 5, 12);
  EXPECT_EQ(rendezvous.WaitingFor(), "");
  EXPECT_EQ(own, 5);
  EXPECT_EQ((**first)->norm(), 5);
  EXPECT_EQ((**second)->norm(), 5);
}

TEST(NormRendezvousTest, WhoAsksAgainTakesTheEarlierOnesPlaceOrIsToldAtOnce) {
  NormRendezvous rendezvous(2);
  const Told lost = Ask(rendezvous, 1, 0, 1);
  const Told again = Ask(rendezvous, 1, 0, 1);
  ASSERT_TRUE(lost->has_value());
  EXPECT_THAT(**lost, StatusIs(StatusCode::kAborted));
  rendezvous.Sum(0, Norm(3), [](const SquaredNorm&) {});
  EXPECT_EQ((**again)->norm(), 2);
  EXPECT_EQ((**Ask(rendezvous, 1, 0, 1))->norm(), 2) << "the answer was lost";
  const Told next = Ask(rendezvous, 1, 1, 1);
  EXPECT_FALSE(next->has_value());
  rendezvous.Sum(1, Norm(8), [](const SquaredNorm&) {});
  EXPECT_EQ((**next)->norm(), 3);
  EXPECT_THAT(**Ask(rendezvous, 1, 0, 1), StatusIs(StatusCode::kFailedPrecondition)) << "older than anyone can need";
}

TEST(NormRendezvousTest, WhatHasNoPlaceIsRefused) {
  NormRendezvous rendezvous(2);
  const Told waiting = Ask(rendezvous, 1, 7, 1);
  EXPECT_THAT(**Ask(rendezvous, 2, 7, 1), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("among 2 shards")));
  EXPECT_THAT(**Ask(rendezvous, 0, 8, 1), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("at step 7")));
  EXPECT_THAT(**Ask(rendezvous, 1, 7, 2), StatusIs(StatusCode::kDataLoss, HasSubstr("differs")));
  EXPECT_FALSE(waiting->has_value());
  rendezvous.Cancel();
  EXPECT_THAT(**waiting, StatusIs(StatusCode::kCancelled));
  EXPECT_THAT(**Ask(rendezvous, 1, 7, 1), StatusIs(StatusCode::kCancelled));
}

// Shard 0 as the client sees it: fails as often as it is told to.
class FakeShard final : public v1::ParameterServer::Service {
 public:
  grpc::Status SumNorm(grpc::ServerContext* context, const v1::NormPart* part, v1::NormTotal* total) override {
    EXPECT_EQ(part->run_id(), 77u);
    EXPECT_EQ(part->shard(), 1u);
    if (hang) {
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
      return grpc::Status(grpc::StatusCode::CANCELLED, "");
    }
    if (failures-- > 0) return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "of another run");
    SquaredNorm norm = *DecodeNorm(*part);
    norm.Add(Norm(part->step()));
    *total = EncodeNormTotal(norm);
    return grpc::Status::OK;
  }
  std::atomic<int> failures = 0;
  std::atomic<bool> hang = false;
};

class NormClientTest : public testing::Test {
 protected:
  NormClientTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + (directory_ / "s").string(), grpc::InsecureServerCredentials());
    builder.RegisterService(&shard_);
    server_ = builder.BuildAndStart();
  }
  ~NormClientTest() override { server_->Shutdown(std::chrono::system_clock::now()); }
  NormClient::Options Options() const {
    return {.run_id = 77, .shard = 1, .address = "unix:" + (directory_ / "s").string()};
  }

  TemporaryDirectory directory_;
  FakeShard shard_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(NormClientTest, BringsTheTotalOfEachStep) {
  NormClient client(Options());
  std::atomic<double> norm = 0;
  client.Sum(16, Norm(9), [&](const SquaredNorm& total) { norm = total.norm(); });
  EXPECT_TRUE(Eventually([&] { return norm == 5; }));
  EXPECT_EQ(client.WaitingFor(), "");
  client.Sum(7, Norm(9), [&](const SquaredNorm& total) { norm = total.norm(); });
  EXPECT_TRUE(Eventually([&] { return norm == 4; }));
}

TEST_F(NormClientTest, AsksUntilItIsAnsweredAndSaysWhy) {
  shard_.failures = 2;
  NormClient client(Options());
  std::atomic<double> norm = 0;
  client.Sum(16, Norm(9), [&](const SquaredNorm& total) { norm = total.norm(); });
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(client.WaitingFor(), "of another run") || norm == 5; }));
  EXPECT_TRUE(Eventually([&] { return norm == 5; }));
  EXPECT_LT(shard_.failures, 0);
}

TEST_F(NormClientTest, ACallThatHangsIsRepeated) {
  shard_.hang = true;
  NormClient::Options options = Options();
  options.call_timeout = absl::Milliseconds(100);
  NormClient client(options);
  std::atomic<double> norm = 0;
  client.Sum(16, Norm(9), [&](const SquaredNorm& total) { norm = total.norm(); });
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(client.WaitingFor(), "Deadline"); }));
  shard_.hang = false;
  EXPECT_TRUE(Eventually([&] { return norm == 5; }));
}

TEST_F(NormClientTest, EndsWhileItAsks) {
  shard_.hang = true;
  NormClient::Options options = Options();
  options.call_timeout = absl::Hours(1);
  auto client = std::make_unique<NormClient>(options);
  client->Sum(16, Norm(9), [](const SquaredNorm&) { FAIL() << "nobody answered"; });
  EXPECT_NE(client->WaitingFor(), "");
  client.reset();  // does not hang
}

TEST_F(NormClientTest, MayBeDestroyedInItsOwnCallback) {
  auto client = std::make_unique<NormClient>(Options());
  std::atomic<bool> gone = false;
  client->Sum(16, Norm(9), [&](const SquaredNorm&) {
    client.reset();
    gone = true;
  });
  EXPECT_TRUE(Eventually([&] { return gone.load(); }));
}

TEST(NormMessageTest, AnotherNumberOfLimbsIsRefused) {
  v1::NormTotal total = EncodeNormTotal(Norm(3));
  EXPECT_EQ(*DecodeNorm(total), Norm(3));
  total.add_limbs(0);
  EXPECT_THAT(DecodeNorm(total), StatusIs(StatusCode::kInvalidArgument, HasSubstr("12 limbs")));
  SquaredNorm infinite;
  infinite.finite = false;
  EXPECT_FALSE(DecodeNorm(EncodeNormTotal(infinite))->finite);
}

}  // namespace
}  // namespace millrace
