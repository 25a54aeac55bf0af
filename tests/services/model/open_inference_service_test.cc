// The Open Inference Protocol over real gRPC, with fake models.
#include "services/model/open_inference_service.h"

#include <atomic>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/engine_fixture.h"
#include "tests/services/model/infer_requests.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using inference::ModelInferRequest;
using inference::ModelInferResponse;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class OpenInferenceServiceTest : public EngineFixture {
 protected:
  OpenInferenceServiceTest() {
    auto server =
        GrpcServer::Start({.address = "unix:" + (root_ / "socket").string(), .metrics = &metrics_}, {&service_});
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
    stub_ = inference::GRPCInferenceService::NewStub(MakeChannel(server_->address()));
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (inference::GRPCInferenceService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                  Response*),
                    const Request& request, Response* response, absl::Duration timeout = absl::Seconds(20)) {
    grpc::ClientContext context;
    SetDeadline(context, timeout);
    response->Clear();
    return (stub_.get()->*method)(&context, request, response);
  }
  grpc::Status Infer(const ModelInferRequest& request, ModelInferResponse* response,
                     absl::Duration timeout = absl::Seconds(20)) {
    return Call(&Stub::ModelInfer, request, response, timeout);
  }
  using Stub = inference::GRPCInferenceService::Stub;
  // Clients that hold both executors until blocked_ is false.
  std::vector<std::thread> Occupy() {
    blocked_ = true;
    std::vector<std::thread> busy;
    for (int i = 0; i < 2; ++i) {
      busy.emplace_back([this] {
        ModelInferResponse response;
        EXPECT_TRUE(Infer(RawInferRequest(), &response).ok());
      });
    }
    EXPECT_TRUE(Eventually([&] { return forward_passes_ == 2; }));
    return busy;
  }

  bool ready_ = true;
  OpenInferenceCatalog catalog_{table_, {.executors = 2, .requests = 16}, [this] {
                                  return ready_ ? absl::OkStatus() : absl::UnavailableError("draining");
                                }};
  OpenInferenceService service_{catalog_, engine_, RealClock(), control_, {"", /*open=*/true}};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(OpenInferenceServiceTest, ALabelStandsForAVersion) {
  PublishAndLoad(7);
  TryCandidate(8);
  ModelInferRequest request = RawInferRequest();
  ModelInferResponse response;
  for (const auto& [label, version] :
       {std::pair("", "8"), std::pair("stable", "7"), std::pair("canary", "8"), std::pair("7", "7")}) {
    request.set_model_version(label);
    ASSERT_TRUE(Infer(request, &response).ok()) << label;
    EXPECT_EQ(response.model_version(), version) << label;
  }
  request.set_model_version("newest");
  EXPECT_THAT(Infer(request, &response).error_message(), HasSubstr("nor stable or canary"));
  request.clear_model_version();
  (*request.mutable_parameters())["key"].set_int64_param(1);
  EXPECT_THAT(Infer(request, &response).error_message(), HasSubstr("key must be a string"));
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(Call(&Stub::RepositoryIndex, {}, &index).ok());
  EXPECT_EQ(index.models_size(), 2);
  EXPECT_EQ(index.models(0).state(), "READY");
}

TEST_F(OpenInferenceServiceTest, LiveAlwaysAndReadyWithTheService) {
  inference::ServerLiveResponse live;
  ASSERT_TRUE(Call(&Stub::ServerLive, {}, &live).ok());
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_TRUE(Call(&Stub::ServerReady, {}, &ready).ok());
  EXPECT_TRUE(ready.ready());
  ready_ = false;
  ASSERT_TRUE(Call(&Stub::ServerReady, {}, &ready).ok());
  EXPECT_FALSE(ready.ready());
}

TEST_F(OpenInferenceServiceTest, AModelIsReadyIfARequestForItWouldBeAnswered) {
  const auto ready = [&](const std::string& version, const std::string& name = "mnist") {
    inference::ModelReadyRequest request;
    request.set_name(name);
    request.set_version(version);
    inference::ModelReadyResponse response;
    EXPECT_TRUE(Call(&Stub::ModelReady, request, &response).ok());
    return response.ready();
  };
  EXPECT_FALSE(ready(""));
  PublishAndLoad(7);
  EXPECT_TRUE(ready(""));
  EXPECT_TRUE(ready("7"));
  EXPECT_FALSE(ready("6"));
  EXPECT_FALSE(ready("", "other"));
  PublishAndLoad(8, "bad");
  EXPECT_TRUE(ready("")) << "a bad push does not make it unready";
  EXPECT_FALSE(ready("8"));
  inference::ModelReadyRequest request;
  request.set_name("mnist");
  request.set_version("latest");
  inference::ModelReadyResponse response;
  EXPECT_EQ(Call(&Stub::ModelReady, request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(OpenInferenceServiceTest, MetadataAndConfigDescribeTheModel) {
  inference::ServerMetadataResponse server;
  ASSERT_TRUE(Call(&Stub::ServerMetadata, {}, &server).ok());
  EXPECT_EQ(server.name(), "millrace");
  EXPECT_THAT(server.extensions(), ::testing::Contains("statistics"));

  inference::ModelMetadataRequest request;
  request.set_name("mnist");
  inference::ModelMetadataResponse metadata;
  EXPECT_EQ(Call(&Stub::ModelMetadata, request, &metadata).error_code(), grpc::StatusCode::UNAVAILABLE);
  PublishAndLoad(7);
  ASSERT_TRUE(Call(&Stub::ModelMetadata, request, &metadata).ok());
  EXPECT_EQ(metadata.name(), "mnist");
  EXPECT_EQ(metadata.platform(), "pytorch_torchscript");
  EXPECT_THAT(metadata.versions(), ElementsAre("7"));
  ASSERT_EQ(metadata.inputs_size(), 1);
  EXPECT_EQ(metadata.inputs(0).datatype(), "UINT8");
  EXPECT_THAT(metadata.inputs(0).shape(), ElementsAre(-1, 1, 2, 3));
  EXPECT_THAT(metadata.outputs(0).shape(), ElementsAre(-1, 4));

  inference::ModelConfigRequest config_request;
  config_request.set_name("mnist");
  inference::ModelConfigResponse config;
  ASSERT_TRUE(Call(&Stub::ModelConfig, config_request, &config).ok());
  EXPECT_EQ(config.config().max_batch_size(), 1024);
  EXPECT_EQ(config.config().input(0).data_type(), inference::TYPE_UINT8);
  EXPECT_THAT(config.config().input(0).dims(), ElementsAre(1, 2, 3));
  EXPECT_THAT(config.config().output(0).dims(), ElementsAre(4));
  EXPECT_EQ(config.config().instance_group(0).count(), 2);
  EXPECT_EQ(config.config().dynamic_batching().default_queue_policy().max_queue_size(), 16u);
  config_request.set_version("6");
  EXPECT_EQ(Call(&Stub::ModelConfig, config_request, &config).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(OpenInferenceServiceTest, InfersAndEveryFaultHasItsCode) {
  ModelInferResponse response;
  EXPECT_EQ(Infer(RawInferRequest(), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  PublishAndLoad(7);
  ModelInferRequest request = RawInferRequest(2);
  request.set_id("a");
  ASSERT_TRUE(Infer(request, &response).ok());
  EXPECT_EQ(response.model_version(), "7");
  EXPECT_EQ(response.id(), "a");
  EXPECT_EQ(response.raw_output_contents(0).size(), 2 * kFakeClasses * sizeof(float));
  ASSERT_TRUE(Infer(TypedInferRequest(), &response).ok());
  EXPECT_EQ(response.outputs(0).contents().fp32_contents(7 % kFakeClasses), 0.7f);
  request.set_model_version("7");
  EXPECT_TRUE(Infer(request, &response).ok());
  request.set_model_version("6");
  EXPECT_EQ(Infer(request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_model_version("newest");
  EXPECT_EQ(Infer(request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request = RawInferRequest();
  request.set_model_name("other");
  EXPECT_EQ(Infer(request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  request = RawInferRequest();
  request.mutable_inputs(0)->set_name("x");
  const grpc::Status fault = Infer(request, &response);
  EXPECT_EQ(fault.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(fault.error_message(), "model mnist has no input 'x'; it takes INPUT__0");
  // Messages travel in a header, whose length the peer limits.
  request.mutable_inputs(0)->set_name(std::string(100'000, 'x'));
  EXPECT_EQ(Infer(request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(OpenInferenceServiceTest, TheCallsDeadlineAndTheTimeoutParameterCount) {
  PublishAndLoad(7);
  std::vector<std::thread> busy = Occupy();
  ModelInferResponse response;
  EXPECT_EQ(Infer(RawInferRequest(), &response, absl::Milliseconds(50)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 2; })) << "the service learns of it a little later";
  ModelInferRequest request = RawInferRequest();
  (*request.mutable_parameters())["timeout"].set_int64_param(1);
  // Refused at once or, if by the estimate it could be done, found to be late when an executor is free.
  std::atomic<bool> refused = false;
  std::thread late([&] {
    EXPECT_EQ(Infer(request, &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    refused = true;
  });
  EXPECT_TRUE(Eventually([&] { return refused || engine_.in_flight() == 3; }));
  blocked_ = false;
  late.join();
  for (std::thread& thread : busy) thread.join();
  EXPECT_EQ(forward_passes_, 2);
}

TEST_F(OpenInferenceServiceTest, StatisticsCountAndOutliveTheVersion) {
  inference::ModelStatisticsRequest request;
  request.set_name("mnist");
  inference::ModelStatisticsResponse statistics;
  EXPECT_EQ(Call(&Stub::ModelStatistics, request, &statistics).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Call(&Stub::ModelStatistics, {}, &statistics).ok());
  EXPECT_EQ(statistics.model_stats_size(), 0);

  PublishAndLoad(7);
  ModelInferResponse response;
  EXPECT_TRUE(Infer(RawInferRequest(3), &response).ok());
  EXPECT_TRUE(Infer(RawInferRequest(1), &response).ok());
  PublishAndLoad(8);
  EXPECT_TRUE(Infer(RawInferRequest(1), &response).ok());
  ASSERT_TRUE(Call(&Stub::ModelStatistics, request, &statistics).ok());
  ASSERT_EQ(statistics.model_stats_size(), 2);
  const inference::ModelStatistics& first = statistics.model_stats(0);
  EXPECT_EQ(first.name(), "mnist");
  EXPECT_EQ(first.version(), "7");
  EXPECT_EQ(first.inference_count(), 4u);
  EXPECT_EQ(first.execution_count(), 2u);
  EXPECT_EQ(first.inference_stats().success().count(), 2u);
  EXPECT_EQ(first.inference_stats().queue().count(), 2u);
  EXPECT_GT(first.inference_stats().success().ns(), 0u);
  EXPECT_GT(first.last_inference(), 0u);
  ASSERT_EQ(first.batch_stats_size(), 2);
  EXPECT_EQ(first.batch_stats(1).batch_size(), 3u);
  EXPECT_EQ(first.batch_stats(1).compute_infer().count(), 1u);
  request.set_version("8");
  ASSERT_TRUE(Call(&Stub::ModelStatistics, request, &statistics).ok());
  ASSERT_EQ(statistics.model_stats_size(), 1);
  EXPECT_EQ(statistics.model_stats(0).inference_count(), 1u);
  request.set_version("9");
  EXPECT_EQ(Call(&Stub::ModelStatistics, request, &statistics).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(OpenInferenceServiceTest, TheIndexSaysWhyAVersionWasRefused) {
  PublishAndLoad(7);
  PublishAndLoad(8, "bad");
  inference::RepositoryIndexRequest request;
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(Call(&Stub::RepositoryIndex, request, &index).ok());
  ASSERT_EQ(index.models_size(), 2);
  EXPECT_EQ(index.models(0).version(), "8");
  EXPECT_EQ(index.models(0).state(), "UNAVAILABLE");
  EXPECT_EQ(index.models(0).reason(), "digest: model.pt differs");
  EXPECT_EQ(index.models(1).state(), "READY");
  request.set_ready(true);
  ASSERT_TRUE(Call(&Stub::RepositoryIndex, request, &index).ok());
  ASSERT_EQ(index.models_size(), 1);
  EXPECT_EQ(index.models(0).version(), "7");
}

TEST_F(OpenInferenceServiceTest, OperatorsLoadAndUnload) {
  PublishAndLoad(7);
  PublishAndLoad(8, "bad");
  const auto load = [&](const std::string& model, const std::string& parameter = "") {
    inference::RepositoryModelLoadRequest request;
    request.set_model_name(model);
    if (!parameter.empty()) (*request.mutable_parameters())[parameter];
    inference::RepositoryModelLoadResponse response;
    return Call(&Stub::RepositoryModelLoad, request, &response);
  };
  const auto unload = [&](const std::string& model) {
    inference::RepositoryModelUnloadRequest request;
    request.set_model_name(model);
    inference::RepositoryModelUnloadResponse response;
    return Call(&Stub::RepositoryModelUnload, request, &response);
  };
  loader_.Start();
  EXPECT_TRUE(unload("mnist").ok());
  EXPECT_THAT(catalog_.ModelReady("mnist", ""), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("unloaded")));
  EXPECT_TRUE(table_.serving_models().empty());
  const inference::RepositoryIndexResponse index = catalog_.Index(false);
  ASSERT_EQ(index.models_size(), 2);
  EXPECT_EQ(index.models(1).version(), "7");
  EXPECT_EQ(index.models(1).state(), "UNAVAILABLE");
  EXPECT_EQ(index.models(1).reason(), "unloaded by an operator");

  const grpc::Status refused = load("mnist");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.error_message(), HasSubstr("model.pt differs"));
  EXPECT_TRUE(Eventually([&] { return catalog_.ModelReady("mnist", "7").ok(); })) << "the next newest";
  Publish(8, "good");
  EXPECT_TRUE(load("mnist").ok());
  EXPECT_THAT(catalog_.ModelReady("mnist", "8"), IsOk());

  EXPECT_EQ(load("other").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(unload("other").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(load("").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(unload("").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(load("mnist", "file:1/model.pt").error_message(), HasSubstr("file:1/model.pt"));
  EXPECT_EQ(load("mnist", "config").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(load("mnist", "unknown").ok());
  EXPECT_THAT(catalog_.ModelReady("mnist", "8"), IsOk());
}

TEST_F(OpenInferenceServiceTest, OthersThanOperatorsLoadAndUnloadNothing) {
  PublishAndLoad(7);
  std::ofstream(root_ / "token") << "a-token-of-some-length";
  OpenInferenceService service(catalog_, engine_, RealClock(), control_, {root_ / "token", /*open=*/true});
  const auto server = GrpcServer::Start({.address = "unix:" + (root_ / "guarded").string()}, {&service}).value();
  const auto stub = inference::GRPCInferenceService::NewStub(MakeChannel(server->address()));
  const auto unload = [&](const std::string& authorization) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    inference::RepositoryModelUnloadRequest request;
    request.set_model_name("mnist");
    inference::RepositoryModelUnloadResponse response;
    return stub->RepositoryModelUnload(&context, request, &response).error_code();
  };
  EXPECT_EQ(unload(""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(unload("Bearer another-token-of-it"), grpc::StatusCode::PERMISSION_DENIED);
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  inference::RepositoryModelLoadRequest request;
  request.set_model_name("mnist");
  inference::RepositoryModelLoadResponse response;
  EXPECT_EQ(stub->RepositoryModelLoad(&context, request, &response).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(catalog_.ModelReady("mnist", ""), IsOk());
  EXPECT_EQ(unload("Bearer a-token-of-some-length"), grpc::StatusCode::OK);
  EXPECT_FALSE(catalog_.ModelReady("mnist", "").ok());
}

class InferenceStreamTest : public OpenInferenceServiceTest {
 protected:
  InferenceStreamTest() { SetDeadline(context_, absl::Seconds(20)); }
  void Open() { stream_ = stub_->ModelStreamInfer(&context_); }
  void Write(const std::string& id, bool good = true) {
    ModelInferRequest request = RawInferRequest();
    request.set_id(id);
    if (!good) request.mutable_inputs(0)->set_datatype("BYTES");
    stream_->Write(request);
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<ModelInferRequest, inference::ModelStreamInferResponse>> stream_;
};

TEST_F(InferenceStreamTest, AnswersInOrderAndAFaultIsAnAnswer) {
  PublishAndLoad(7);
  Open();
  for (int i = 0; i < 30; ++i) Write(std::to_string(i), i % 3 != 1);
  stream_->WritesDone();
  inference::ModelStreamInferResponse response;
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(stream_->Read(&response)) << i;
    EXPECT_EQ(response.infer_response().id(), std::to_string(i));
    if (i % 3 == 1) {
      EXPECT_THAT(response.error_message(), HasSubstr("INVALID_ARGUMENT: input INPUT__0 of model mnist: datatype"));
    } else {
      EXPECT_EQ(response.error_message(), "");
      EXPECT_EQ(response.infer_response().raw_output_contents_size(), 1);
    }
  }
  EXPECT_FALSE(stream_->Read(&response));
  EXPECT_TRUE(stream_->Finish().ok());
}

TEST_F(InferenceStreamTest, ADrainEndsAnIdleStreamAndRefusesANewOne) {
  PublishAndLoad(7);
  Open();
  Write("1");
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(stream_->Read(&response));
  service_.Drain();
  EXPECT_FALSE(stream_->Read(&response));
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  EXPECT_EQ(stub_->ModelStreamInfer(&context)->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(InferenceStreamTest, ADrainLetsTheRequestUnderWayBeAnswered) {
  PublishAndLoad(7);
  blocked_ = true;
  Open();
  Write("1");
  EXPECT_TRUE(Eventually([&] { return forward_passes_ == 1; }));
  service_.Drain();
  blocked_ = false;
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(stream_->Read(&response));
  EXPECT_EQ(response.infer_response().id(), "1");
  EXPECT_FALSE(stream_->Read(&response));
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(InferenceStreamTest, ACancelledStreamsRequestIsNotComputed) {
  PublishAndLoad(7);
  std::vector<std::thread> busy = Occupy();
  Open();
  Write("1");
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 3; }));
  context_.TryCancel();
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 2; }));
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  blocked_ = false;
  for (std::thread& thread : busy) thread.join();
  EXPECT_EQ(forward_passes_, 2);
}

}  // namespace
}  // namespace millrace
