#include "services/model/admin_service.h"

#include <fstream>
#include <memory>
#include <string>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/engine_fixture.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class AdminServiceTest : public EngineFixture {
 protected:
  // On a server of its own.
  void Serve(const AdminService::Options& options) {
    server_.reset();
    service_ = std::make_unique<AdminService>(options, table_, loader_);
    server_ = GrpcServer::Start({.address = "unix:" + (root_ / "socket").string()}, {service_.get()}).value();
    stub_ = v1::ModelAdmin::NewStub(MakeChannel(server_->address()));
  }
  void ServeOpenly() { Serve({.repository = root_ / "models", .open = true}); }
  absl::Status Pin(uint64_t version, const std::string& authorization = "") {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    v1::PinRequest request;
    request.set_version(version);
    v1::PinResponse response;
    return FromGrpcStatus(stub_->Pin(&context, request, &response));
  }
  absl::StatusOr<v1::RollbackResponse> Rollback(const std::string& model = "") {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::RollbackRequest request;
    request.set_model(model);
    v1::RollbackResponse response;
    const absl::Status status = FromGrpcStatus(stub_->Rollback(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }
  void PollAll() {
    while (loader_.PollOnce()) {
    }
  }
  uint64_t Serving() { return (*table_.Find("", 0))->info().version; }

  std::unique_ptr<AdminService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::ModelAdmin::Stub> stub_;
};

TEST_F(AdminServiceTest, RollsBackToWhatServedBeforeAndStaysThere) {
  ServeOpenly();
  EXPECT_THAT(Rollback(), StatusIs(absl::StatusCode::kUnavailable)) << "nothing serves yet";
  PublishAndLoad(10);
  EXPECT_THAT(Rollback(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("before 10")));
  Publish(15, "bad");
  PollAll();
  PublishAndLoad(20);
  const auto rolled_back = Rollback();
  ASSERT_THAT(rolled_back, IsOk());
  EXPECT_EQ(rolled_back->model(), "mnist");
  EXPECT_EQ(rolled_back->serving(), 20u);
  EXPECT_EQ(rolled_back->pinned(), 10u) << "15 was refused, and never served";
  PollAll();
  EXPECT_EQ(Serving(), 10u);
  PublishAndLoad(30);
  EXPECT_EQ(Serving(), 10u);
  EXPECT_THAT(Pin(0), IsOk());
  PollAll();
  EXPECT_EQ(Serving(), 30u);
}

TEST_F(AdminServiceTest, RollsBackToWhatServedRatherThanToWhatOnlyStandsBy) {
  const auto load = [&](uint64_t version) {
    return std::make_shared<const LoadedVersion>(std::make_unique<FakePredictor>(FakeInfo("mnist", version)),
                                                 model_metrics_->AddVersion("mnist", version), 0);
  };
  ServeOpenly();
  Publish(10);
  PublishAndLoad(20);
  table_.AddStandby(load(10));
  EXPECT_EQ(Rollback()->pinned(), 10u) << "nothing else is older";
  EXPECT_THAT(Pin(0), IsOk());
  Publish(30);
  PublishAndLoad(40);
  table_.AddStandby(load(30));
  EXPECT_EQ(Rollback()->pinned(), 20u);
}

TEST_F(AdminServiceTest, APinThatWaitsCanBeEnded) {
  ServeOpenly();
  loader_.Pin("mnist", 15);
  PublishAndLoad(10);
  EXPECT_FALSE(table_.serves("mnist"));
  EXPECT_THAT(Pin(12), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Pin(0), IsOk());
  PollAll();
  EXPECT_EQ(Serving(), 10u);
}

TEST_F(AdminServiceTest, OnlyWhatIsThereCanBePinned) {
  ServeOpenly();
  PublishAndLoad(10);
  PublishAndLoad(20);
  EXPECT_THAT(Pin(15), StatusIs(absl::StatusCode::kNotFound, HasSubstr("version 15 of model mnist")));
  EXPECT_THAT(Rollback("elsewhere"), StatusIs(absl::StatusCode::kNotFound));
  std::filesystem::remove_all(root_ / "models/mnist/10");
  EXPECT_THAT(Rollback(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 10")));
  std::filesystem::remove_all(root_ / "models/mnist/20");
  EXPECT_THAT(Pin(20), IsOk()) << "it serves";
  PollAll();
  EXPECT_EQ(Serving(), 20u);
}

TEST_F(AdminServiceTest, NeedsTheTokenAndChangesNothingWithoutIt) {
  const std::string token_file = root_ / "token";
  std::ofstream(token_file) << "a-token-of-some-length";
  Serve({.repository = root_ / "models", .token_file = token_file, .open = true});
  PublishAndLoad(10);
  PublishAndLoad(20);
  EXPECT_THAT(Pin(10), StatusIs(absl::StatusCode::kUnauthenticated));
  EXPECT_THAT(Rollback(), StatusIs(absl::StatusCode::kUnauthenticated));
  EXPECT_THAT(Pin(10, "Bearer another-token-of-it"), StatusIs(absl::StatusCode::kPermissionDenied));
  PollAll();
  EXPECT_EQ(Serving(), 20u);
  EXPECT_THAT(Pin(10, "Bearer a-token-of-some-length"), IsOk());
  PollAll();
  EXPECT_EQ(Serving(), 10u);
}

TEST_F(AdminServiceTest, WithoutATokenAServiceOnTheNetworkLetsNobodyIn) {
  Serve({.repository = root_ / "models", .open = false});
  PublishAndLoad(10);
  EXPECT_THAT(Pin(10), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("--admin-token-file")));
  EXPECT_THAT(Rollback(), StatusIs(absl::StatusCode::kPermissionDenied));
}

}  // namespace
}  // namespace millrace
