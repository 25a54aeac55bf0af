// `millrace status` against a coordinator and shards that say what they were told to say.
#include "services/cli/status_command.h"

#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "common/command_line.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "millrace/v1/parameter.grpc.pb.h"
#include "tests/testing/temporary_directory.h"
#include "tests/testing/training_status.h"

namespace millrace {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class FakeCoordinator : public v1::Coordinator::Service {
 public:
  v1::JobStatus status_ = TrainingStatus();  // set before the first call

 private:
  grpc::Status GetJobStatus(grpc::ServerContext*, const v1::GetJobStatusRequest*, v1::JobStatus* response) override {
    *response = status_;
    return grpc::Status::OK;
  }
};

class FakeShard : public v1::ParameterServer::Service {
 public:
  explicit FakeShard(bool mute) : mute_(mute) {}

 private:
  grpc::Status GetShardStatus(grpc::ServerContext* context, const v1::GetShardStatusRequest*,
                              v1::ShardStatus* response) override {
    while (mute_ && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(2));
    response->set_version(1123);
    response->set_waiting_for("step 1123: slots 5-7");
    return grpc::Status::OK;
  }

  const bool mute_;
};

class StatusCommandTest : public testing::Test {
 protected:
  std::string Socket(const std::string& name) const { return "unix:" + (directory_ / name).string(); }
  std::unique_ptr<GrpcServer> Serve(const std::string& name, grpc::Service& service) const {
    return GrpcServer::Start({.address = Socket(name)}, {&service}).value();
  }
  void AddShard(const std::string& address) {
    v1::ShardInfo& shard = *coordinator_.status_.add_shards();
    shard.set_shard(coordinator_.status_.shards_size() - 1);
    shard.set_address(address);
  }
  std::string Output() const {
    testing::internal::CaptureStdout();
    EXPECT_EQ(RunStatus({.target = {Socket("coordinator")}}), kExitOk);
    return testing::internal::GetCapturedStdout();
  }

  const TemporaryDirectory directory_;
  FakeCoordinator coordinator_;
};

TEST_F(StatusCommandTest, EveryShardSaysWhatItWaitsFor) {
  AddShard(Socket("a"));
  AddShard(Socket("b"));
  FakeShard a(/*mute=*/false), b(/*mute=*/false);
  const auto shard_a = Serve("a", a), shard_b = Serve("b", b);
  const auto coordinator = Serve("coordinator", coordinator_);
  const std::string text = Output();
  EXPECT_THAT(text, HasSubstr("epoch 3/10  step 1,123/4,220"));
  EXPECT_THAT(text, HasSubstr("at " + Socket("a") + ", version 1123, waiting for step 1123: slots 5-7\n"));
  EXPECT_THAT(text, HasSubstr("at " + Socket("b") + ", version 1123, waiting for step 1123: slots 5-7\n"));
}

TEST_F(StatusCommandTest, AShardThatCannotBeReachedOrIsSilentIsNamed) {
  AddShard(Socket("nobody"));
  AddShard(Socket("silent"));
  AddShard("");
  FakeShard silent(/*mute=*/true);
  const auto shard = Serve("silent", silent);
  const auto coordinator = Serve("coordinator", coordinator_);
  const std::string text = Output();
  EXPECT_THAT(text, ContainsRegex("shard 0 .*/nobody, no answer: "));
  EXPECT_THAT(text, ContainsRegex("shard 1 .*/silent, no answer: Deadline Exceeded"));
  EXPECT_THAT(text, HasSubstr("at (not registered)\n"));
}

}  // namespace
}  // namespace millrace
