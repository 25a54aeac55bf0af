// The commands that talk to a model service, against one that knows a class from its first pixel.
#include <filesystem>
#include <fstream>

#include "common/command_line.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/model.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "services/cli/explain_command.h"
#include "services/cli/load_test_command.h"
#include "services/cli/models_command.h"
#include "services/cli/predict_command.h"
#include "services/cli/serving_check.h"
#include "services/cli/status_command.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr uint64_t kVersion = 844;

class FakeModelService : public v1::ModelService::Service {
 public:
  grpc::Status Predict(grpc::ServerContext*, const v1::PredictRequest* request,
                       v1::PredictResponse* response) override {
    const std::string& input = request->has_raw() ? request->raw() : request->encoded_image();
    if (input.empty() || input[0] == 'x') return {grpc::StatusCode::INVALID_ARGUMENT, "no image"};
    if (--answers < 0) return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too much"};
    response->set_version(VersionOf(*request));
    v1::Prediction& prediction = *response->add_predictions();
    if (reconstructs) {
      prediction.set_error(static_cast<float>(static_cast<uint8_t>(input[0])) / 100);
      return grpc::Status::OK;
    }
    prediction.set_label(static_cast<uint8_t>(input[0]) % 10);
    prediction.mutable_probabilities()->Resize(10, 0.01f);
    prediction.set_probabilities(static_cast<int>(prediction.label()), 0.91f);
    return grpc::Status::OK;
  }
  grpc::Status Explain(grpc::ServerContext*, const v1::ExplainRequest* request,
                       v1::ExplainResponse* response) override {
    EXPECT_EQ(request->method(), v1::ExplainRequest::METHOD_OCCLUSION);
    if (request->encoded_image() == "x") return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no image");
    response->set_version(VersionOf(*request));
    response->set_compute_microseconds(2500);
    v1::Explanation& explanation = *response->add_explanations();
    explanation.set_target(5);
    explanation.set_score(0.91f);
    explanation.set_baseline_score(0.1f);
    explanation.add_map(1);
    explanation.set_height(1);
    explanation.set_width(1);
    explanation.set_image("i");
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    v1::ModelVersionStatus& version = *response->add_versions();
    version.set_model("mnist");
    version.set_version(kVersion);
    version.set_state(refuse ? v1::ModelVersionStatus::STATE_REFUSED : v1::ModelVersionStatus::STATE_SERVING);
    version.set_reason(refuse ? "weights are not finite" : "");
    return grpc::Status::OK;
  }
  // First what ListModels tells, then that the version has had its first request.
  grpc::Status WatchVersions(grpc::ServerContext* context, const v1::WatchVersionsRequest*,
                             grpc::ServerWriter<v1::WatchVersionsResponse>* writer) override {
    v1::ListModelsResponse models;
    EXPECT_TRUE(ListModels(context, nullptr, &models).ok());
    v1::WatchVersionsResponse response;
    *response.mutable_versions() = models.versions();
    writer->Write(response);
    response.mutable_versions(0)->set_requests(1);
    writer->Write(response);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "shutting down");
  }
  // Another one than kVersion if it is asked for.
  template <typename Request>
  static uint64_t VersionOf(const Request& request) {
    if (request.label() == "canary" || request.key() == "canary's") return kVersion + 1;
    return request.version() == 0 ? kVersion : request.version();
  }

  // Set before the first call.
  bool refuse = false;
  bool reconstructs = false;
  std::atomic<int> answers = 1'000'000;  // predictions until too much is asked
};

class ModelClientsTest : public testing::Test {
 protected:
  ModelClientsTest() {
    auto server = GrpcServer::Start({.address = "127.0.0.1:0"}, {&service_});
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
  }
  std::string WriteFile(const std::string& name, const std::string& contents) {
    std::ofstream(directory_ / name) << contents;
    return (directory_ / name).string();
  }
  // 100 images of which the service takes 90 for what their label says.
  TestImages Images() {
    TestImages images{.image_bytes = 4};
    for (int i = 0; i < 100; ++i) {
      images.pixels += std::string(1, static_cast<char>(i)) + "abc";
      images.labels += static_cast<char>(i < 90 ? i % 10 : (i + 1) % 10);
    }
    return images;
  }

  TemporaryDirectory directory_;
  FakeModelService service_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(ModelClientsTest, PredictGoesOnAfterABadFile) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int exit_code = RunPredict(
      {.target = {server_->address()},
       .files = {WriteFile("7.png", "7"), WriteFile("bad.png", "x"), "missing.png", WriteFile("8.png", "8")}});
  const std::string out = testing::internal::GetCapturedStdout();
  const std::string err = testing::internal::GetCapturedStderr();
  EXPECT_EQ(exit_code, kExitFailure);
  EXPECT_THAT(out, HasSubstr("7.png: 5  91.00 %  version 844  "));  // '7' is 55
  EXPECT_THAT(out, HasSubstr("8.png: 6  91.00 %  version 844  "));
  EXPECT_THAT(err, HasSubstr("bad.png: no image\n"));
  EXPECT_THAT(err, HasSubstr("missing.png: "));
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 2);
}

TEST_F(ModelClientsTest, CommandsAskTheVersionTheyAreTold) {
  const std::string file = WriteFile("7.png", "7");
  for (const auto& [choice, version] : {std::pair<VersionChoice, std::string>{{.version = 422}, "422"},
                                        {{.label = "canary"}, "845"},
                                        {{.key = "canary's"}, "845"},
                                        {{.label = "stable"}, "844"}}) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(RunPredict({.target = {server_->address()}, .choice = choice, .files = {file}}), kExitOk);
    EXPECT_EQ(RunExplain({.target = {server_->address()},
                          .choice = choice,
                          .method = "occlusion",
                          .out_dir = directory_.path(),
                          .files = {file}}),
              kExitOk);
    const std::string out = testing::internal::GetCapturedStdout();
    EXPECT_THAT(out, ContainsRegex("7.png: 5  .*version " + version));
    EXPECT_THAT(out, ContainsRegex("7.png: class 5  .*version " + version));
  }
}

TEST(FormatPredictionTest, TellsTheErrorOfAReconstruction) {
  v1::PredictResponse response;
  response.set_version(4220);
  response.add_predictions()->set_error(0.005123f);
  EXPECT_EQ(FormatPrediction("three.png", response, absl::Milliseconds(1.234)),
            "three.png: reconstruction error 0.00512  version 4220  1.23 ms");
}

TEST_F(ModelClientsTest, ExplainDrawsAPictureForEachFile) {
  const fs::path out = directory_.path();
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int exit_code = RunExplain({.target = {server_->address()},
                                    .method = "occlusion",
                                    .out_dir = out,
                                    .files = {WriteFile("7.png", "7"), WriteFile("bad.png", "x")}});
  EXPECT_EQ(exit_code, kExitFailure);
  EXPECT_THAT(testing::internal::GetCapturedStdout(),
              HasSubstr("7.png: class 5  91.00 %, of a black image 10.00 %  version 844  2.5 ms  " +
                        (out / "7.explained.png").string() + "\n"));
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("bad.png: no image\n"));
  EXPECT_TRUE(fs::exists(out / "7.explained.png"));
  EXPECT_FALSE(fs::exists(out / "bad.explained.png"));
}

TEST_F(ModelClientsTest, PredictRefusesABadTarget) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunPredict({.target = {"nonsense"}, .files = {"a.png"}}), kExitUsage);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("--target"));
}

TEST_F(ModelClientsTest, StatusTellsAModelServiceFromACoordinator) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(RunStatus({.target = {server_->address()}}), kExitOk);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("mnist version 844  serving"));
}

ModelVersions TwoVersions() {
  ModelVersions versions;
  v1::ModelVersionStatus& refused = *versions.Add();
  refused.set_model("mnist");
  refused.set_version(844);
  refused.set_state(v1::ModelVersionStatus::STATE_REFUSED);
  refused.set_reason("model.pt: SHA-256 \"differs\"");
  v1::ModelVersionStatus& serving = *versions.Add();
  serving.set_model("mnist");
  serving.set_version(422);
  serving.set_state(v1::ModelVersionStatus::STATE_SERVING);
  serving.set_accuracy(0.98);
  serving.set_requests(10'000);
  serving.set_pinned(true);
  return versions;
}

TEST(FormatModelTableTest, ListsVersionsUnderAHeading) {
  EXPECT_EQ(FormatModelTable({}), "MODEL  VERSION  STATE  ACCURACY  REQUESTS  PINNED  REASON\n");
  EXPECT_EQ(FormatModelTable(TwoVersions()),
            "MODEL  VERSION  STATE    ACCURACY  REQUESTS  PINNED  REASON\n"
            "mnist  844      refused  -         0                 model.pt: SHA-256 \"differs\"\n"
            "mnist  422      serving  98.00 %   10,000    pinned\n");
}

TEST(FormatModelsJsonTest, HoldsWhatTheTableHolds) {
  EXPECT_EQ(FormatModelsJson({}), "{\"versions\":[]}\n");
  EXPECT_EQ(FormatModelsJson(TwoVersions()),
            R"({"versions":[{"model":"mnist","version":844,"state":"refused","accuracy":null,"requests":0,)"
            R"("pinned":false,"reason":"model.pt: SHA-256 \"differs\""},)"
            R"({"model":"mnist","version":422,"state":"serving","accuracy":0.98,"requests":10000,)"
            R"("pinned":true,"reason":""}]})"
            "\n");
}

TEST_F(ModelClientsTest, ModelsListsTheVersions) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunModels({.target = {server_->address()}}), kExitOk);
  EXPECT_EQ(RunModels({.target = {server_->address()}, .json = true}), kExitOk);
  EXPECT_EQ(RunModels({.target = {"nonsense"}}), kExitUsage);
  const std::string address = server_->address();
  server_.reset();
  EXPECT_EQ(RunModels({.target = {address}}), kExitFailure);
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_THAT(out, HasSubstr("mnist  844      serving"));
  EXPECT_THAT(out, HasSubstr(R"("version":844,"state":"serving")"));
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(address));
}

TEST_F(ModelClientsTest, ModelsWatchesUntilTheServiceEnds) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunModels({.target = {server_->address()}, .watch = true}), kExitFailure);
  EXPECT_EQ(RunModels({.target = {server_->address()}, .json = true, .watch = true}), kExitFailure);
  const std::string heading = "MODEL  VERSION  STATE    ACCURACY  REQUESTS  PINNED  REASON\n";
  const std::string json = R"({"versions":[{"model":"mnist","version":844,"state":"serving","accuracy":null,)";
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            heading + "mnist  844      serving  -         0\n\n" +  //
                heading + "mnist  844      serving  -         1\n" + json +
                "\"requests\":0,\"pinned\":false,\"reason\":\"\"}]}\n" +  //
                json + "\"requests\":1,\"pinned\":false,\"reason\":\"\"}]}\n");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(server_->address() + ": shutting down\n"));
}

TEST_F(ModelClientsTest, StatusOfNothingIsAFailure) {
  const std::string address = server_->address();
  server_.reset();
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunStatus({.target = {address}}), kExitFailure);
  EXPECT_EQ(RunStatus({.target = {"nonsense"}}), kExitUsage);
  EXPECT_EQ(RunStatus({.target = {directory_.path().string()}}), kExitBadConfiguration);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(address));
}

TEST_F(ModelClientsTest, ClosedLoopLoadTestWritesTheDocumentedFields) {
  const std::string json_path = (directory_ / "load.json").string();
  testing::internal::CaptureStdout();
  EXPECT_EQ(RunLoadTest({.target = {server_->address()}, .concurrency = 2, .seconds = 0.2, .json = json_path}),
            kExitOk);
  testing::internal::GetCapturedStdout();
  std::ifstream file(json_path);
  const auto json = nlohmann::ordered_json::parse(file);
  std::vector<std::string> names;
  for (const auto& [name, value] : json.items()) names.push_back(name);
  EXPECT_THAT(names,
              testing::ElementsAre("requests", "failed", "failures", "rate", "p50_ms", "p90_ms", "p99_ms", "p999_ms"));
  EXPECT_GT(json["requests"], 0);
  EXPECT_EQ(json["failed"], 0);
  EXPECT_LE(json["p50_ms"], json["p999_ms"]);
}

TEST_F(ModelClientsTest, OpenLoopSendsAtTheRate) {
  const auto result = RunLoad({.target = {server_->address()}, .rate = 100, .seconds = 0.5});
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->requests, 50u);
  EXPECT_EQ(result->failed, 0u);
}

TEST_F(ModelClientsTest, LoadTestCountsFailuresByTheirCodes) {
  service_.answers = 1 + 20;  // the first one is sent to connect
  const auto result = RunLoad({.target = {server_->address()}, .rate = 200, .seconds = 0.25});
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->requests, 50u);
  EXPECT_EQ(result->failed, 30u);
  EXPECT_THAT(result->failures, testing::ElementsAre(testing::Pair("RESOURCE_EXHAUSTED", 30)));
}

TEST_F(ModelClientsTest, CheckServingCountsEveryImageOnce) {
  std::atomic<uint64_t> done = 0;
  const auto served = CheckServing(server_->address(), "mnist", kVersion, Images(), {}, done);
  ASSERT_THAT(served, IsOk());
  EXPECT_EQ(served->version, kVersion);
  EXPECT_EQ(served->requests, 100u);
  EXPECT_EQ(done, 100u);
  EXPECT_EQ(served->failed, 0u);
  EXPECT_DOUBLE_EQ(served->accuracy, 0.9);
  EXPECT_LE(served->p50_ms, served->p99_ms);
}

TEST_F(ModelClientsTest, CheckServingAveragesTheErrorsOfReconstructions) {
  service_.reconstructs = true;
  std::atomic<uint64_t> done = 0;
  const auto served = CheckServing(server_->address(), "mnist", kVersion, Images(), {}, done);
  ASSERT_THAT(served, IsOk());
  EXPECT_EQ(served->failed, 0u);
  ASSERT_TRUE(served->error.has_value());
  EXPECT_NEAR(*served->error, 0.495, 1e-6);  // image i has the error i / 100
}

TEST_F(ModelClientsTest, CheckServingReportsARefusedVersion) {
  service_.refuse = true;
  std::atomic<uint64_t> done = 0;
  EXPECT_THAT(CheckServing(server_->address(), "mnist", kVersion, Images(), {}, done),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("weights are not finite")));
}

}  // namespace
}  // namespace millrace
