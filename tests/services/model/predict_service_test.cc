// The service over real gRPC, with fake models: what clients see while versions come and go.
#include "services/model/predict_service.h"

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/engine_fixture.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PredictServiceTest : public EngineFixture {
 protected:
  PredictServiceTest() {
    auto server =
        GrpcServer::Start({.address = "unix:" + (root_ / "socket").string(), .metrics = &metrics_}, {&service_});
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
    stub_ = v1::ModelService::NewStub(MakeChannel(server_->address()));
  }

  grpc::Status Predict(const v1::PredictRequest& request, v1::PredictResponse* response,
                       absl::Duration timeout = absl::Seconds(20)) {
    grpc::ClientContext context;
    SetDeadline(context, timeout);
    return stub_->Predict(&context, request, response);
  }
  grpc::Status Predict(const v1::PredictRequest& request) {
    v1::PredictResponse response;
    return Predict(request, &response);
  }
  static v1::PredictRequest Raw(uint32_t rows = 1) {
    v1::PredictRequest request;
    request.set_model("mnist");
    request.set_raw(std::string(kFakeShape.bytes() * rows, 'x'));
    request.set_rows(rows);
    return request;
  }

  Explainer explainer_{metrics_, RealClock()};
  PredictService service_{table_, engine_, explainer_, RealClock()};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::ModelService::Stub> stub_;
};

TEST_F(PredictServiceTest, AnswersCarryTheirProvenance) {
  PublishAndLoad(7);
  v1::PredictResponse response;
  ASSERT_TRUE(Predict(Raw(2), &response).ok());
  EXPECT_EQ(response.model(), "mnist");
  EXPECT_EQ(response.version(), 7u);
  EXPECT_EQ(response.step(), 7u);
  EXPECT_EQ(response.digest(), "digest-7");
  EXPECT_EQ(response.batch_rows(), 2u);
  ASSERT_EQ(response.predictions_size(), 2);
  EXPECT_EQ(response.predictions(1).label(), 7 % kFakeClasses);
  EXPECT_EQ(response.predictions(1).probabilities_size(), static_cast<int>(kFakeClasses));
}

TEST_F(PredictServiceTest, ALabelChoosesTheVersionAndSoDoesARolloutIfThereIsNone) {
  PublishAndLoad(7);
  v1::PredictRequest request = Raw();
  const auto version = [&](const std::string& label) {
    request.set_label(label);
    v1::PredictResponse response;
    EXPECT_TRUE(Predict(request, &response).ok()) << label;
    return response.version();
  };
  EXPECT_EQ(version(""), 7u);
  EXPECT_EQ(version("stable"), 7u);
  request.set_label("canary");
  EXPECT_THAT(Predict(request).error_message(), HasSubstr("there is stable (version 7)"));
  TryCandidate(8);
  EXPECT_EQ(version(""), 8u);
  EXPECT_EQ(version("stable"), 7u);
  EXPECT_EQ(version("canary"), 8u);
  request.set_version(7);
  EXPECT_THAT(Predict(request).error_message(), HasSubstr("version and a label"));
  EXPECT_EQ(version(""), 7u);
}

TEST_F(PredictServiceTest, AnAutoencodersAnswerIsTheImageAndItsError) {
  PublishAndLoad(7, "autoencoder");
  v1::PredictResponse response;
  ASSERT_TRUE(Predict(Raw(2), &response).ok());
  ASSERT_EQ(response.predictions_size(), 2);
  const v1::Prediction& second = response.predictions(1);
  EXPECT_EQ(second.probabilities_size(), 0);
  ASSERT_EQ(second.reconstruction_size(), static_cast<int>(kFakeShape.bytes()));
  EXPECT_EQ(second.reconstruction(0), 1);
  EXPECT_EQ(second.reconstruction(5), 1);
  EXPECT_TRUE(second.has_error());
  EXPECT_EQ(second.error(), 7);
  PublishAndLoad(8);
  response.Clear();
  ASSERT_TRUE(Predict(Raw(), &response).ok());
  EXPECT_FALSE(response.predictions(0).has_error());
}

TEST_F(PredictServiceTest, RowsAndModelMayBeLeftOutAndImagesSent) {
  PublishAndLoad(7);
  v1::PredictRequest request = Raw();
  request.clear_model();
  request.clear_rows();
  EXPECT_TRUE(Predict(request).ok());
  const Bytes samples = Draw(20, 20, [](uint32_t x, uint32_t) { return static_cast<int>(x) * 10; });
  for (const Bytes& image :
       {EncodePng(20, 20, PNG_FORMAT_GRAY, samples.data()), EncodeJpeg(20, 20, 1, samples.data())}) {
    request.set_encoded_image(image.data(), image.size());
    v1::PredictResponse response;
    EXPECT_TRUE(Predict(request, &response).ok());
    EXPECT_EQ(response.predictions_size(), 1);
  }
}

TEST_F(PredictServiceTest, EveryFaultHasItsCode) {
  EXPECT_EQ(Predict(Raw()).error_code(), grpc::StatusCode::UNAVAILABLE);
  PublishAndLoad(7);
  v1::PredictRequest request = Raw();
  request.set_model("other");
  EXPECT_EQ(Predict(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request = Raw();
  request.set_version(6);
  EXPECT_EQ(Predict(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_version(7);
  EXPECT_TRUE(Predict(request).ok());
  request.set_rows(5);
  const grpc::Status wrong_size = Predict(request);
  EXPECT_EQ(wrong_size.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(wrong_size.error_message(), HasSubstr("30 bytes for rows = 5, got 6"));
  request = Raw();
  request.clear_input();
  EXPECT_EQ(Predict(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_encoded_image("not an image");
  EXPECT_EQ(Predict(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(PredictServiceTest, ExpiredRequestsInTheQueueAreNotComputedAndAFullQueueRefuses) {
  PublishAndLoad(7);
  blocked_ = true;
  std::vector<std::thread> clients;
  const auto ask = [&](absl::Duration timeout, grpc::StatusCode expected) {
    clients.emplace_back([this, timeout, expected] {
      v1::PredictResponse response;
      EXPECT_EQ(Predict(Raw(), &response, timeout).error_code(), expected);
    });
  };
  ask(absl::Seconds(20), grpc::StatusCode::OK);
  ask(absl::Seconds(20), grpc::StatusCode::OK);
  EXPECT_TRUE(Eventually([&] { return forward_passes_ == 2; }));
  ask(absl::Milliseconds(50), grpc::StatusCode::DEADLINE_EXCEEDED);
  clients.back().join();
  clients.pop_back();
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 2; }));
  for (int i = 0; i < 14; ++i) ask(absl::Seconds(20), grpc::StatusCode::OK);
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 16; }));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::PredictResponse response;
  EXPECT_EQ(stub_->Predict(&context, Raw(), &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto hint = context.GetServerTrailingMetadata().find("grpc-retry-pushback-ms");
  EXPECT_TRUE(hint != context.GetServerTrailingMetadata().end() &&
              std::stoi(std::string(hint->second.begin(), hint->second.end())) >= 1);
  EXPECT_EQ(forward_passes_, 2);
  blocked_ = false;
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(forward_passes_, 2 + 4);  // fourteen rows that waited, in batches of four
}

TEST_F(PredictServiceTest, ListModelsTellsStateAndReason) {
  PublishAndLoad(7);
  PublishAndLoad(8, "bad");
  EXPECT_TRUE(Predict(Raw()).ok());
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::ListModelsResponse response;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &response).ok());
  ASSERT_EQ(response.versions_size(), 2);
  EXPECT_EQ(response.versions(0).version(), 8u);
  EXPECT_EQ(response.versions(0).state(), v1::ModelVersionStatus::STATE_REFUSED);
  EXPECT_EQ(response.versions(0).reason(), "digest: model.pt differs");
  EXPECT_EQ(response.versions(1).state(), v1::ModelVersionStatus::STATE_SERVING);
  EXPECT_EQ(response.versions(1).requests(), 1u);
  EXPECT_EQ(response.versions(1).accuracy(), 0.5);
}

class WatchVersionsTest : public PredictServiceTest {
 protected:
  WatchVersionsTest() {
    table_.OnChange([this] { service_.VersionsChanged(); });
    SetDeadline(context_, absl::Seconds(20));
    stream_ = stub_->WatchVersions(&context_, {});
  }
  ~WatchVersionsTest() override { table_.OnChange(nullptr); }
  // The next list, as "7 SERVING, 6 RETIRED".
  std::string Next() {
    v1::WatchVersionsResponse response;
    if (!stream_->Read(&response)) return "the end";
    std::string text;
    for (const v1::ModelVersionStatus& version : response.versions()) {
      absl::StrAppend(&text, text.empty() ? "" : ", ", version.version(), " ",
                      v1::ModelVersionStatus::State_Name(version.state()));
    }
    return text;
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WatchVersionsResponse>> stream_;
};

TEST_F(WatchVersionsTest, SendsTheListAtOnceAndAfterEveryChangeUntilTheDrain) {
  EXPECT_EQ(Next(), "");
  PublishAndLoad(7);
  // What came between may be missed, never the last.
  EXPECT_TRUE(Eventually([&] { return Next() == "7 STATE_SERVING"; }));
  PublishAndLoad(8, "bad");
  EXPECT_TRUE(Eventually([&] { return Next() == "8 STATE_REFUSED, 7 STATE_SERVING"; }));
  service_.Drain();
  EXPECT_EQ(Next(), "the end");
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  EXPECT_EQ(stub_->WatchVersions(&context, {})->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// A hundred thousand lists would fill any buffer; the one that stands is the newest.
TEST_F(WatchVersionsTest, AClientThatDoesNotReadMissesWhatIsBetween) {
  PublishAndLoad(7);
  constexpr int kChanges = 100'000;
  for (int i = 0; i < kChanges; ++i) table_.SetRefused("mnist", 8, std::string(200, 'x'));
  table_.Forget("mnist", 8);
  table_.SetLoading("mnist", 9);
  int lists = 1;
  for (std::string text = Next(); text != "9 STATE_LOADING, 7 STATE_SERVING"; text = Next()) {
    ASSERT_NE(text, "the end");
    ++lists;
  }
  EXPECT_LT(lists, kChanges / 2);
}

TEST_F(WatchVersionsTest, AClientThatIsGoneIsForgotten) {
  EXPECT_EQ(Next(), "");
  context_.TryCancel();
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  for (int i = 0; i < 100; ++i) PublishAndLoad(7 + static_cast<uint64_t>(i));
  // More than may watch at once, one after another.
  for (size_t i = 0; i < StreamSet<VersionWatcher>::kStreamsMax + 10; ++i) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    const auto stream = stub_->WatchVersions(&context, {});
    v1::WatchVersionsResponse response;
    ASSERT_TRUE(stream->Read(&response)) << i;
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

TEST_F(PredictServiceTest, AStreamAnswersInOrderAndAFaultIsAnAnswer) {
  PublishAndLoad(7);
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  const auto stream = stub_->PredictStream(&context);
  for (int i = 0; i < 30; ++i) {
    v1::PredictStreamRequest request;
    request.set_id(std::to_string(i));
    *request.mutable_request() = Raw(static_cast<uint32_t>(1 + i % 2));
    if (i % 3 == 1) request.mutable_request()->set_version(6);
    stream->Write(request);
  }
  stream->WritesDone();
  v1::PredictStreamResponse response;
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(stream->Read(&response)) << i;
    EXPECT_EQ(response.id(), std::to_string(i));
    if (i % 3 == 1) {
      EXPECT_EQ(response.fault().code(), grpc::StatusCode::NOT_FOUND);
      EXPECT_THAT(response.fault().message(), HasSubstr("version 6 of model mnist is not loaded"));
    } else {
      EXPECT_EQ(response.response().predictions_size(), 1 + i % 2);
      EXPECT_EQ(response.response().digest(), "digest-7");
    }
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(PredictServiceTest, AStreamHasOneRequestInTheEngineAndEndsWithTheDrain) {
  PublishAndLoad(7);
  blocked_ = true;
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  const auto stream = stub_->PredictStream(&context);
  v1::PredictStreamRequest request;
  *request.mutable_request() = Raw();
  for (int i = 0; i < 10; ++i) stream->Write(request);
  EXPECT_TRUE(Eventually([&] { return forward_passes_ == 1; }));
  EXPECT_EQ(engine_.in_flight(), 1);
  service_.Drain();
  blocked_ = false;
  v1::PredictStreamResponse response;
  EXPECT_TRUE(stream->Read(&response));
  EXPECT_TRUE(response.has_response());
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(forward_passes_, 1);
}

TEST_F(PredictServiceTest, ExplainsAndSaysOfWhichVersion) {
  PublishAndLoad(7);
  v1::ExplainRequest request;
  request.set_raw(std::string("\1\2\3\4\5\6"));
  request.set_method(v1::ExplainRequest::METHOD_SALIENCY);
  const auto explain = [&](v1::ExplainResponse* response) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    return stub_->Explain(&context, request, response);
  };
  v1::ExplainResponse response;
  ASSERT_TRUE(explain(&response).ok());
  EXPECT_EQ(response.version(), 7u);
  EXPECT_EQ(response.digest(), "digest-7");
  EXPECT_FALSE(response.cached());
  ASSERT_EQ(response.explanations_size(), 1);
  EXPECT_THAT(response.explanations(0).map(), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ(response.explanations(0).height(), 2u);
  EXPECT_EQ(response.explanations(0).width(), 3u);
  EXPECT_EQ(response.explanations(0).image(), request.raw());

  request.set_version(99);
  EXPECT_EQ(explain(&response).error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_version(0);
  request.set_method(static_cast<v1::ExplainRequest::Method>(77));
  EXPECT_EQ(explain(&response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_method();
  request.clear_raw();
  EXPECT_THAT(explain(&response).error_message(), HasSubstr("holds no input"));
}

TEST_F(PredictServiceTest, TheVersionThatAnswersExplains) {
  PublishAndLoad(7);
  v1::ExplainRequest request;
  request.set_raw(Raw().raw());
  const auto explains = [&] {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::ExplainResponse response;
    const grpc::Status status = stub_->Explain(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.version();
  };
  TryCandidate(8, 0.5);
  std::set<uint64_t> versions;
  for (int i = 0; i < 40; ++i) {
    v1::PredictRequest asked = Raw();
    asked.set_key(absl::StrCat("reader ", i));
    request.set_key(asked.key());
    v1::PredictResponse answer;
    ASSERT_TRUE(Predict(asked, &answer).ok());
    EXPECT_EQ(explains(), answer.version()) << i;
    versions.insert(answer.version());
  }
  EXPECT_THAT(versions, ElementsAre(7, 8));
  request.set_label("stable");
  EXPECT_EQ(explains(), 7u);
  request.set_label("canary");
  EXPECT_EQ(explains(), 8u);
}

}  // namespace
}  // namespace millrace
