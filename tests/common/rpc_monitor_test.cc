#include "common/rpc_monitor.h"

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/fake_model_service.h"
#include "tests/testing/eventually.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kPredict[] = "/millrace.v1.ModelService/Predict";

grpc::StatusCode Call(const std::string& address, const std::string& model) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::PredictRequest request;
  request.set_model(model);
  v1::PredictResponse response;
  return v1::ModelService::NewStub(MakeChannel(address))->Predict(&context, request, &response).error_code();
}

template <typename Service>
class RpcMonitorTest : public ::testing::Test {};
using Services = ::testing::Types<FakeModelService, FakeCallbackModelService>;
TYPED_TEST_SUITE(RpcMonitorTest, Services);

TYPED_TEST(RpcMonitorTest, CountsCallsByMethodAndCode) {
  Metrics metrics("test");
  TypeParam service;
  auto server = GrpcServer::Start({.address = "127.0.0.1:0", .metrics = &metrics}, {&service});
  ASSERT_THAT(server, IsOk());
  EXPECT_EQ(Call((*server)->address(), "m"), grpc::StatusCode::OK);
  EXPECT_EQ(Call((*server)->address(), "m"), grpc::StatusCode::OK);
  EXPECT_EQ(Call((*server)->address(), "missing"), grpc::StatusCode::NOT_FOUND);
  // The client has seen the ends of these calls, so they are counted.
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("grpc_server_started_total{grpc_method=\"/millrace.v1.ModelService/Predict\"} 3"));
  EXPECT_THAT(text, HasSubstr("grpc_server_handled_total{grpc_code=\"OK\","
                              "grpc_method=\"/millrace.v1.ModelService/Predict\"} 2"));
  EXPECT_THAT(text, HasSubstr("grpc_server_handled_total{grpc_code=\"NOT_FOUND\","
                              "grpc_method=\"/millrace.v1.ModelService/Predict\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("grpc_server_handling_seconds_count{grpc_method=\"/millrace.v1.ModelService/Predict\"} 3"));
}

TEST(RpcMonitorSeriesTest, ACallThatTheClientCancelsIsCounted) {
  Metrics metrics("test");
  FakeModelService service;
  auto server = GrpcServer::Start({.address = "127.0.0.1:0", .metrics = &metrics}, {&service});
  ASSERT_THAT(server, IsOk());
  v1::PredictRequest request;
  request.set_model("slow");
  RawStream call(MakeChannel((*server)->address()), kPredict);
  call.Write(request.SerializeAsString());
  call.WritesDone();
  ASSERT_TRUE(Eventually([&] { return service.calls == 1; }));
  call.TryCancel();
  EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] {
    return metrics.Render().find(
               "grpc_server_handled_total{grpc_code=\"CANCELLED\","
               "grpc_method=\"/millrace.v1.ModelService/Predict\"} 1") != std::string::npos;
  }));
}

TEST(RpcMonitorSeriesTest, APeerCannotMakeSeriesWithoutBound) {
  Metrics metrics("test");
  FakeModelService service;
  auto server = GrpcServer::Start({.address = "127.0.0.1:0", .metrics = &metrics}, {&service});
  ASSERT_THAT(server, IsOk());
  const auto channel = MakeChannel((*server)->address());
  for (int i = 0; i < 300; ++i) {
    RawStream call(channel, absl::StrCat("/made.up.Service/Method", i));
    call.WritesDone();
    EXPECT_EQ(call.Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  EXPECT_THAT(metrics.Render(), Not(HasSubstr("/made.up.Service/Method299")));
}

TEST(RpcMonitorSeriesTest, WorksWithoutMetrics) {
  FakeModelService service;
  auto server = GrpcServer::Start({.address = "127.0.0.1:0"}, {&service});
  ASSERT_THAT(server, IsOk());
  EXPECT_EQ(Call((*server)->address(), "m"), grpc::StatusCode::OK);
}

}  // namespace
}  // namespace millrace
