#include "common/grpc_server.h"

#include <set>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/limits.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/fake_model_service.h"
#include "tests/testing/eventually.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kHealthWatch[] = "/grpc.health.v1.Health/Watch";
constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
// grpc.health.v1.HealthCheckResponse, encoded.
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

grpc::Status Predict(const std::shared_ptr<grpc::Channel>& channel, const v1::PredictRequest& request,
                     v1::PredictResponse* response = nullptr) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::PredictResponse ignored;
  return v1::ModelService::NewStub(channel)->Predict(&context, request, response == nullptr ? &ignored : response);
}

v1::PredictRequest RequestFor(const std::string& model) {
  v1::PredictRequest request;
  request.set_model(model);
  request.set_rows(7);
  return request;
}

std::string CheckHealth(const std::string& address) {
  RawStream call(MakeChannel(address), kHealthCheck);
  call.Write("");
  call.WritesDone();
  return call.Read().value_or("no answer");
}

class GrpcServerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string address =
        std::string(GetParam()) == "unix" ? "unix:" + (directory_ / "s").string() : "127.0.0.1:0";
    auto server = GrpcServer::Start({.address = address, .metrics = &metrics_}, {&service_});
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"test"};
  FakeModelService service_;
  std::unique_ptr<GrpcServer> server_;
};
INSTANTIATE_TEST_SUITE_P(Transports, GrpcServerTest, ::testing::Values("tcp", "unix"));

TEST_P(GrpcServerTest, AnswersAtTheAddressItTells) {
  EXPECT_EQ(server_->address().find(":0"), std::string::npos);
  v1::PredictResponse response;
  EXPECT_TRUE(Predict(MakeChannel(server_->address()), RequestFor("m"), &response).ok());
  EXPECT_EQ(response.version(), 7u);
}

TEST_P(GrpcServerTest, AnAddressInUseIsAClearErrorAndTheFirstServerGoesOn) {
  FakeModelService other;
  const auto second = GrpcServer::Start({.address = server_->address()}, {&other});
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kAlreadyExists,
                               "cannot listen on " + server_->address() + ": address already in use"));
  EXPECT_TRUE(Predict(MakeChannel(server_->address()), RequestFor("m")).ok());
  EXPECT_EQ(service_.calls, 1);
}

TEST_P(GrpcServerTest, AddressCanBeUsedAgainAfterwards) {
  const std::string address = server_->address();
  server_.reset();
  EXPECT_THAT(GrpcServer::Start({.address = address}, {&service_}), IsOk());
}

TEST_P(GrpcServerTest, HealthCheckFollowsSetServing) {
  EXPECT_EQ(CheckHealth(server_->address()), kNotServing);
  server_->SetServing(true);
  EXPECT_EQ(CheckHealth(server_->address()), kServing);
  server_->SetServing(false);
  EXPECT_EQ(CheckHealth(server_->address()), kNotServing);
}

TEST_P(GrpcServerTest, HealthWatchIsToldOfChangesAndDoesNotHoldUpTheDrain) {
  RawStream watch(MakeChannel(server_->address()), kHealthWatch, absl::Minutes(2));
  watch.Write("");
  watch.WritesDone();
  EXPECT_EQ(watch.Read(), kNotServing);
  server_->SetServing(true);
  EXPECT_EQ(watch.Read(), kServing);
  const absl::Time start = absl::Now();
  server_->Drain(absl::Seconds(60));
  EXPECT_LT(absl::Now() - start, absl::Seconds(3));
  while (watch.Read().has_value()) {
  }
  EXPECT_FALSE(watch.Finish().ok());
}

TEST_P(GrpcServerTest, ReflectionListsTheServices) {
  RawStream call(MakeChannel(server_->address()), kReflection);
  call.Write("\x3a\x01*");  // ServerReflectionRequest{list_services: "*"}
  const std::string answer = call.Read().value_or("");
  EXPECT_THAT(answer, HasSubstr("millrace.v1.ModelService"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
  call.WritesDone();
  EXPECT_TRUE(call.Finish().ok());
}

TEST_P(GrpcServerTest, DrainLetsCallsInFlightFinishAndRefusesNewOnes) {
  const auto channel = MakeChannel(server_->address());
  grpc::Status status;
  std::thread caller([&] { status = Predict(channel, RequestFor("slow")); });
  ASSERT_TRUE(Eventually([&] { return service_.calls == 1; }));
  std::thread drain([&] { server_->Drain(absl::Seconds(60)); });
  EXPECT_TRUE(Eventually([&] { return !Predict(MakeChannel(server_->address()), RequestFor("m")).ok(); }));
  service_.release.Notify();
  drain.join();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_P(GrpcServerTest, AnIdleClientDoesNotHoldUpTheDrain) {
  RawStream idle(MakeChannel(server_->address()), "/millrace.v1.ModelService/Predict");
  idle.WritesDone();
  idle.Finish();  // from here on nobody reads this connection
  const absl::Time start = absl::Now();
  server_->Drain(absl::Seconds(60));
  EXPECT_LT(absl::Now() - start, absl::Seconds(3));
}

TEST_P(GrpcServerTest, ALargeAnswerInFlightArrivesWhole) {
  v1::PredictRequest request = RequestFor("slow");
  request.set_raw(std::string(20 << 20, 'x'));
  v1::PredictResponse response;
  grpc::Status status;
  const auto channel = MakeChannel(server_->address());
  std::thread caller([&] { status = Predict(channel, request, &response); });
  ASSERT_TRUE(Eventually([&] { return service_.calls == 1; }));
  std::thread drain([&] { server_->Drain(absl::Seconds(60)); });
  service_.release.Notify();
  drain.join();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.digest().size(), request.raw().size());
}

TEST_P(GrpcServerTest, DrainCancelsWhatOutlivesTheGrace) {
  const auto channel = MakeChannel(server_->address());
  grpc::Status status;
  std::thread caller([&] { status = Predict(channel, RequestFor("slow")); });
  ASSERT_TRUE(Eventually([&] { return service_.calls == 1; }));
  server_->Drain(absl::Milliseconds(50));
  caller.join();
  EXPECT_FALSE(status.ok());
  server_->Drain(absl::Milliseconds(50));  // a second time does nothing
}

TEST_P(GrpcServerTest, MessagesOverGrpcsDefaultOfFourMebibytesPass) {
  v1::PredictRequest request = RequestFor("m");
  request.set_raw(std::string(20 << 20, 'x'));
  EXPECT_TRUE(Predict(MakeChannel(server_->address()), request).ok());
}

TEST_P(GrpcServerTest, MessagesOverTheLimitAreRefusedWithoutHarm) {
  // Our own channels would not even send it.
  grpc::ChannelArguments unlimited;
  unlimited.SetMaxSendMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), unlimited);
  v1::PredictRequest request = RequestFor("m");
  request.set_raw(std::string(kMessageBytesMax, 'x'));
  EXPECT_EQ(Predict(channel, request).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Predict(channel, RequestFor("m")).ok());
}

TEST_P(GrpcServerTest, AConnectionHasNoMoreCallsAtOnceThanTheLimit) {
  const auto channel = MakeChannel(server_->address());
  std::vector<std::unique_ptr<RawStream>> watches;
  for (int i = 0; i < kCallsPerConnectionMax; ++i) {
    watches.push_back(std::make_unique<RawStream>(channel, kHealthWatch, absl::Minutes(2)));
    ASSERT_TRUE(watches.back()->Write(""));
    ASSERT_EQ(watches.back()->Read(), kNotServing);
  }
  const auto check = [&](absl::Duration timeout) {
    RawStream call(channel, kHealthCheck, timeout);
    call.Write("");
    call.WritesDone();
    return call.Read();
  };
  EXPECT_EQ(check(absl::Milliseconds(200)), std::nullopt);
  watches.pop_back();
  EXPECT_EQ(check(absl::Seconds(20)), kNotServing);
}

TEST_P(GrpcServerTest, NonsenseInsteadOfAMessageIsAnErrorOfTheCall) {
  RawStream call(MakeChannel(server_->address()), "/millrace.v1.ModelService/Predict");
  call.Write("\xff\xff\xff nonsense");
  call.WritesDone();
  EXPECT_FALSE(call.Finish().ok());
  EXPECT_TRUE(Predict(MakeChannel(server_->address()), RequestFor("m")).ok());
}

// A service that remembers from where it was called.
class PeerRecorder : public v1::ModelService::Service {
 public:
  grpc::Status Predict(grpc::ServerContext* context, const v1::PredictRequest* /*request*/,
                       v1::PredictResponse* /*response*/) override {
    MutexLock lock(&mutex_);
    peers_.insert(context->peer());
    return grpc::Status::OK;
  }
  size_t peers() const {
    MutexLock lock(&mutex_);
    return peers_.size();
  }

 private:
  mutable Mutex mutex_;
  std::set<std::string> peers_ ABSL_GUARDED_BY(mutex_);
};

TEST(GrpcServerConnectionAgeTest, AnOldConnectionIsLeftAndNoCallFails) {
  PeerRecorder service;
  auto server = GrpcServer::Start({.address = "127.0.0.1:0", .connection_age_max = absl::Milliseconds(50)}, {&service});
  ASSERT_THAT(server, IsOk());
  const std::shared_ptr<grpc::Channel> channel = MakeChannel((*server)->address());
  ASSERT_TRUE(Eventually([&] {
    EXPECT_TRUE(Predict(channel, RequestFor("m")).ok());
    return service.peers() >= 3;
  }));
}

TEST(GrpcServerStartTest, BadAddressesAreClearErrors) {
  EXPECT_THAT(GrpcServer::Start({.address = "nonsense"}, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(GrpcServer::Start({.address = "unix:/no/such/directory/s"}, {}), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace millrace
