#include "services/parameter_server/coordinator_service.h"

#include <memory>
#include <optional>
#include <string>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/no_queue.h"
#include "tests/services/parameter_server/test_plan.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// A worker's end of a Work stream over a real connection.
struct Stream {
  explicit Stream(v1::Coordinator::Stub& stub) {
    SetDeadline(context, absl::Seconds(20));
    stream = stub.Work(&context);
  }
  bool SayHello(const std::string& name) {
    v1::WorkerMessage message;
    message.mutable_hello()->set_worker(name);
    return stream->Write(message);
  }
  std::optional<v1::CoordinatorMessage> Read() {
    v1::CoordinatorMessage message;
    if (!stream->Read(&message)) return std::nullopt;
    return message;
  }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> stream;
};

class CoordinatorServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = GrpcServer::Start({.address = "unix:" + (directory_ / "ps").string()}, {&service_});
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    stub_ = v1::Coordinator::NewStub(MakeChannel(server_->address()));
    ASSERT_THAT(coordinator_.Begin(
                    TestPlan{}.Build(), {}, [](const auto&, const auto&) { return std::make_unique<NoQueue>(); },
                    [] { return RunStart(); }),
                IsOk());
  }
  void TearDown() override {
    coordinator_.Shutdown();
    server_->Drain(absl::Seconds(5));
  }
  grpc::Status Register(uint32_t num_shards, v1::RegisterShardResponse* response) {
    v1::RegisterShardRequest request;
    request.set_num_shards(num_shards);
    request.set_address("unix:/shard");
    for (;;) {
      grpc::ClientContext context;
      SetDeadline(context, absl::Seconds(20));
      const grpc::Status status = stub_->RegisterShard(&context, request, response);
      if (!status.ok() || request.serving_run_id() == response->plan().run_id()) return status;
      request.set_serving_run_id(response->plan().run_id());
    }
  }
  v1::JobStatus Status() {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::JobStatus status;
    EXPECT_TRUE(stub_->GetJobStatus(&context, v1::GetJobStatusRequest(), &status).ok());
    return status;
  }

  TemporaryDirectory directory_;
  Metrics metrics_{"test"};
  Coordinator coordinator_{{.data_addresses = {"unix:/data"}, .clock = &RealClock(), .metrics = &metrics_}};
  CoordinatorService service_{&coordinator_};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
};

TEST_F(CoordinatorServiceTest, AWorkerIsWelcomedAndGrantedLeases) {
  v1::RegisterShardResponse registered;
  EXPECT_EQ(Register(2, &registered).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_TRUE(Register(1, &registered).ok());
  EXPECT_EQ(registered.shard().end(), 256u);

  Stream worker(*stub_);
  ASSERT_TRUE(worker.SayHello("worker-0"));
  const auto welcome = worker.Read();
  ASSERT_TRUE(welcome.has_value() && welcome->has_welcome());
  EXPECT_EQ(welcome->welcome().shards(0).address(), "unix:/shard");
  EXPECT_EQ(welcome->welcome().plan().run_id(), registered.plan().run_id());
  const auto lease = worker.Read();
  ASSERT_TRUE(lease.has_value() && lease->has_lease());
  EXPECT_EQ(lease->lease().version(), 0u);
  EXPECT_EQ(Status().workers_size(), 1);

  worker.stream->WritesDone();
  while (worker.Read()) {
  }
  EXPECT_TRUE(worker.stream->Finish().ok());
}

TEST_F(CoordinatorServiceTest, ABrokenStreamIsALostWorker) {
  v1::RegisterShardResponse registered;
  ASSERT_TRUE(Register(1, &registered).ok());
  Stream lost(*stub_);
  ASSERT_TRUE(lost.SayHello("worker-0"));
  ASSERT_TRUE(lost.Read().has_value());
  ASSERT_TRUE(lost.Read().has_value());
  lost.context.TryCancel();

  Stream other(*stub_);
  ASSERT_TRUE(other.SayHello("worker-1"));
  ASSERT_TRUE(other.Read()->has_welcome());
  const auto lease = other.Read();
  ASSERT_TRUE(lease.has_value() && lease->has_lease());
  EXPECT_EQ(lease->lease().version(), 0u) << "what the lost worker held";
  other.context.TryCancel();
  lost.stream->Finish();
  other.stream->Finish();
}

TEST_F(CoordinatorServiceTest, AStreamThatBreaksTheProtocolIsEnded) {
  v1::RegisterShardResponse registered;
  ASSERT_TRUE(Register(1, &registered).ok());
  Stream rude(*stub_);
  v1::WorkerMessage message;
  message.mutable_heartbeat();
  ASSERT_TRUE(rude.stream->Write(message));
  EXPECT_FALSE(rude.Read().has_value());
  const grpc::Status status = rude.stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("hello"));
}

TEST_F(CoordinatorServiceTest, ShutdownEndsStreamsWithUnavailable) {
  v1::RegisterShardResponse registered;
  ASSERT_TRUE(Register(1, &registered).ok());
  Stream worker(*stub_);
  ASSERT_TRUE(worker.SayHello("worker-0"));
  ASSERT_TRUE(worker.Read().has_value());
  coordinator_.Shutdown();
  while (worker.Read()) {
  }
  EXPECT_EQ(worker.stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace millrace
