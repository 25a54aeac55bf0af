#include "services/worker/parameter_client.h"

#include <numeric>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/worker/fake_parameter_server.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using Weights = ParameterLink::Weights;

constexpr uint64_t kBoundary = kChunkElements + 64;  // the first shard has two chunks
constexpr uint64_t kCount = kBoundary + 100;

class ParameterClientTest : public ::testing::Test {
 protected:
  ParameterClientTest()
      : first_(absl::StrCat("unix:", (directory_ / "0").string()), 0, kBoundary),
        second_(absl::StrCat("unix:", (directory_ / "1").string()), kBoundary, kCount) {
    std::iota(first_.weights_.begin(), first_.weights_.end(), 1.0f);
    std::iota(second_.weights_.begin(), second_.weights_.end(), static_cast<float>(kBoundary + 1));
  }

  std::unique_ptr<ParameterClient> NewClient(absl::Duration stall_timeout = absl::Seconds(30)) {
    auto client = ParameterClient::Create({.run_id = 7,
                                           .worker = "w",
                                           .incarnation = 1,
                                           .shards = {first_.info(), second_.info()},
                                           .parameters = parameters_.span(),
                                           .stall_timeout = stall_timeout},
                                          &metrics_);
    EXPECT_THAT(client, IsOk());
    return *std::move(client);
  }

  GradientPush NewPush(uint64_t step, float scale = 1) {
    auto gradient = std::make_shared<AlignedBuffer<float>>(kCount);
    for (size_t i = 0; i < kCount; ++i) (*gradient)[i] = scale * static_cast<float>(i);
    return {.step = step, .slots = {2, 4}, .samples = 256, .gradient = gradient};
  }

  // Pushes step 0 to a first shard that negates its weights for version 1 and holds back their end; waits for the rest.
  void PushAndGetAPart(ParameterClient& client) {
    ASSERT_EQ(*client.AwaitVersion(0, patience_), Weights::kReady);
    ASSERT_THAT(client.Push(NewPush(0), patience_), IsOk());
    const auto until_it_is_there = [&](std::string_view what) {
      return parameters_[0] < 0 ? absl::CancelledError() : Patience(what);
    };
    ASSERT_THAT(client.AwaitVersion(1, until_it_is_there), StatusIs(absl::StatusCode::kCancelled));
  }

  // Waits at most ten seconds.
  absl::Status Patience(std::string_view what) {
    last_wait_ = what;
    return absl::Now() < deadline_ ? absl::OkStatus() : absl::DeadlineExceededError(last_wait_);
  }

  TemporaryDirectory directory_;
  FakeParameterServer first_;
  FakeParameterServer second_;
  Metrics registry_{"test"};
  WorkerMetrics metrics_{registry_};
  AlignedBuffer<float> parameters_{kCount};
  absl::Time deadline_ = absl::Now() + absl::Seconds(10);
  std::string last_wait_;
  std::function<absl::Status(std::string_view)> patience_ = [this](std::string_view what) { return Patience(what); };
};

TEST_F(ParameterClientTest, ReceivesWeightsInPlace) {
  const auto client = NewClient();
  EXPECT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(parameters_[i], static_cast<float>(i + 1));
  EXPECT_EQ(metrics_.received_bytes.Value(), kCount * sizeof(float));
}

TEST_F(ParameterClientTest, PushesAndReceivesTheNextVersion) {
  for (FakeParameterServer* server : {&first_, &second_}) {
    server->apply_ = [server](const FakeParameterServer::Push& push) {
      server->version_ = push.step + 1;
      for (size_t i = 0; i < push.gradient.size(); ++i) server->weights_[i] -= push.gradient[i];
    };
  }
  const auto client = NewClient();
  for (uint64_t step = 0; step < 3; ++step) {
    ASSERT_EQ(*client->AwaitVersion(step, patience_), Weights::kReady);
    ASSERT_THAT(client->Push(NewPush(step, 0.5f), patience_), IsOk());
  }
  ASSERT_EQ(*client->AwaitVersion(3, patience_), Weights::kReady);
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(parameters_[i], i + 1 - 1.5f * i) << i;
  ASSERT_EQ(first_.pushes().size(), 3u);
  const FakeParameterServer::Push push = second_.pushes()[2];
  EXPECT_EQ(push.step, 2u);
  EXPECT_EQ(push.slot_begin, 2u);
  EXPECT_EQ(push.slot_end, 4u);
  EXPECT_EQ(push.samples, 256u);
  EXPECT_EQ(push.gradient[0], 0.5f * kBoundary);
}

TEST_F(ParameterClientTest, SaysWhenTheWeightsHaveMovedPast) {
  second_.version_ = 5;
  const auto client = NewClient();
  EXPECT_EQ(*client->AwaitVersion(4, patience_), Weights::kMovedPast);
}

TEST_F(ParameterClientTest, FetchesWhatAShardThatIsAheadStillHas) {
  second_.version_ = 1;
  second_.retained_[0] = second_.weights_;
  for (float& weight : second_.weights_) weight = -weight;
  // What completes step 0 on the first shard makes version 1 there; the second sent it before it was asked for 0.
  first_.apply_ = [this](const FakeParameterServer::Push&) { first_.version_ = 1; };
  const auto client = NewClient();
  ASSERT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(parameters_[i], static_cast<float>(i + 1)) << i;
  ASSERT_THAT(client->Push(NewPush(0), patience_), IsOk());
  ASSERT_EQ(*client->AwaitVersion(1, patience_), Weights::kReady);
  EXPECT_EQ(parameters_[0], 1.0f);
  EXPECT_EQ(parameters_[kCount - 1], -static_cast<float>(kCount));
}

// Another worker was lost in the middle of its push: a part of the next version has come, and the rest waits for its
// slots to be computed again on the weights that the part has overwritten.
TEST_F(ParameterClientTest, FetchesWhatAPartOfTheNextVersionHasOverwritten) {
  first_.apply_ = [this](const FakeParameterServer::Push&) {
    if (first_.version_ > 0) return;
    first_.retained_[0] = first_.weights_;
    first_.version_ = 1;
    for (float& weight : first_.weights_) weight = -weight;
    first_.hold_back_ = true;
  };
  second_.apply_ = [this](const FakeParameterServer::Push& push) { second_.version_ = push.slot_begin == 0 ? 1 : 0; };
  const auto client = NewClient();
  ASSERT_NO_FATAL_FAILURE(PushAndGetAPart(*client));
  ASSERT_EQ(parameters_[kBoundary - 1], static_cast<float>(kBoundary));
  ASSERT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(parameters_[i], static_cast<float>(i + 1)) << i;

  GradientPush lost = NewPush(0);
  lost.slots = {0, 2};
  ASSERT_THAT(client->Push(lost, patience_), IsOk());
  ASSERT_EQ(*client->AwaitVersion(1, patience_), Weights::kReady);
  for (size_t i = 0; i < kBoundary; ++i) ASSERT_EQ(parameters_[i], -static_cast<float>(i + 1)) << i;
}

// What a part of it arrived of need not exist: the shard may have been waiting for the rest of its gradients.
TEST_F(ParameterClientTest, AVersionThatBrokeOffInTheMiddleIsWaitedForAgain) {
  first_.apply_ = [this](const FakeParameterServer::Push&) {
    first_.version_ = 1;
    for (float& weight : first_.weights_) weight = -weight;
    first_.hold_back_ = true;
  };
  const auto client = NewClient();
  ASSERT_NO_FATAL_FAILURE(PushAndGetAPart(*client));
  first_.Stop();
  first_.version_ = 0;
  first_.silent_ = true;
  first_.Start();
  deadline_ = absl::Now() + absl::Milliseconds(800);
  EXPECT_THAT(client->AwaitVersion(1, patience_), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(ParameterClientTest, WaitsForAVersionAndSaysForWhich) {
  second_.version_ = 1;
  const auto client = NewClient();
  deadline_ = absl::Now() + absl::Milliseconds(500);
  EXPECT_THAT(client->AwaitVersion(1, patience_), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(last_wait_, HasSubstr("weights 1 from shard 0 at unix:"));
}

TEST_F(ParameterClientTest, APushThatWasCutOffStartsOver) {
  first_.break_after_chunks_ = 1;
  const auto client = NewClient();
  ASSERT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
  ASSERT_THAT(client->Push(NewPush(0), patience_), IsOk());
  ASSERT_EQ(first_.pushes().size(), 1u);
  EXPECT_EQ(first_.pushes()[0].gradient.size(), kBoundary);
  EXPECT_EQ(second_.pushes().size(), 1u);
  EXPECT_EQ(first_.exchanges(), 2);
  EXPECT_EQ(metrics_.exchange_breaks.Value(), 1);
}

TEST_F(ParameterClientTest, AShardThatIsNotThereYetIsWaitedFor) {
  first_.Stop();
  const auto client = NewClient();
  deadline_ = absl::Now() + absl::Milliseconds(600);
  EXPECT_THAT(client->AwaitVersion(0, patience_), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(last_wait_, HasSubstr("(lost: "));
  first_.Start();
  deadline_ = absl::Now() + absl::Seconds(10);
  EXPECT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
}

TEST_F(ParameterClientTest, ARefusalIsFinal) {
  second_.refusal_ = {grpc::StatusCode::FAILED_PRECONDITION, "another run"};
  const auto client = NewClient();
  EXPECT_THAT(client->AwaitVersion(0, patience_), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("another run")));
  EXPECT_EQ(second_.exchanges(), 1);
}

TEST_F(ParameterClientTest, WeightsBeyondTheRangeAreNotWritten) {
  first_.send_garbage_ = true;
  const auto client = NewClient();
  EXPECT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);  // from a second exchange
  EXPECT_EQ(first_.exchanges(), 2);
  EXPECT_EQ(parameters_[kBoundary], kBoundary + 1);
}

TEST_F(ParameterClientTest, AStalledShardIsTriedAgain) {
  first_.mute_ = true;
  const auto client = NewClient(/*stall_timeout=*/absl::Milliseconds(300));
  ASSERT_EQ(*client->AwaitVersion(0, patience_), Weights::kReady);
  deadline_ = absl::Now() + absl::Seconds(2);
  EXPECT_THAT(client->Push(NewPush(0), patience_), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(last_wait_, HasSubstr("the acknowledgement of step 0 slots [2, 4)"));
  EXPECT_GE(first_.exchanges(), 2);
}

TEST_F(ParameterClientTest, TheGradientIsFreeAfterItsPush) {
  const auto client = NewClient();
  std::weak_ptr<const AlignedBuffer<float>> gradient;
  {
    const GradientPush push = NewPush(0);
    gradient = push.gradient;
    ASSERT_THAT(client->Push(push, patience_), IsOk());
  }
  // gRPC lets go of the last slices when it next looks at the stream.
  while (!gradient.expired() && absl::Now() < deadline_) {
    (void)client->AwaitVersion(1, [](std::string_view) { return absl::CancelledError(); });
  }
  EXPECT_TRUE(gradient.expired());
}

TEST_F(ParameterClientTest, RefusesShardsThatDoNotCoverTheVector) {
  const auto create = [&](std::vector<v1::ShardInfo> shards) {
    ParameterClient::Options options;
    options.shards = std::move(shards);
    options.parameters = parameters_.span();
    return ParameterClient::Create(options, &metrics_).status();
  };
  EXPECT_THAT(create({}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(create({first_.info()}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("do not cover")));
  EXPECT_THAT(create({second_.info(), first_.info()}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace millrace
