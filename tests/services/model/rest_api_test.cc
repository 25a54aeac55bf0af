// The REST protocols over a real HTTP server, with fake models.
#include "services/model/rest_api.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/services/model/engine_fixture.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kRows[] = R"({"instances": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]})";

json InferBody(const json& data = {1, 2, 3, 4, 5, 6}) {
  return {{"inputs", {{{"name", "INPUT__0"}, {"datatype", "UINT8"}, {"shape", {1, 1, 2, 3}}, {"data", data}}}}};
}

class RestApiTest : public EngineFixture {
 protected:
  RestApiTest() {
    auto server = HttpServer::Start({.address = "unix:" + (root_ / "http").string(), .api = api_.Api()});
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
  }
  // The HTTP server waits for requests in progress.
  ~RestApiTest() override { blocked_ = false; }

  HttpReply Get(const std::string& path) { return HttpFetch(server_->address(), path); }
  HttpReply Post(const std::string& path, const std::string& body, const std::string& headers = "") {
    return HttpFetch(server_->address(), path, "POST", body, headers);
  }
  json GetJson(const std::string& path) {
    const HttpReply reply = Get(path);
    EXPECT_EQ(reply.status, 200) << path << ": " << reply.body;
    return json::parse(reply.body, nullptr, false);
  }
  // Clients whose requests wait for the model until blocked_ is false.
  std::vector<std::thread> Occupy(int clients) {
    blocked_ = true;
    std::vector<std::thread> busy;
    for (int i = 0; i < clients; ++i) {
      busy.emplace_back([this] { EXPECT_EQ(Post("/v1/models/mnist:predict", kRows).status, 200); });
    }
    EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == clients; }));
    return busy;
  }
  void Release(std::vector<std::thread>& busy) {
    blocked_ = false;
    for (std::thread& thread : busy) thread.join();
  }

  bool ready_ = true;
  OpenInferenceCatalog catalog_{table_, {.executors = 2, .requests = 16}, [this] {
                                  return ready_ ? absl::OkStatus() : absl::UnavailableError("draining");
                                }};
  Explainer explainer_{metrics_, RealClock()};
  RestApi api_{catalog_, engine_, explainer_, RealClock(), control_, {"", /*open=*/true}};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(RestApiTest, LabelsAndKeysChooseTheVersion) {
  PublishAndLoad(7);
  EXPECT_EQ(Post("/v1/models/mnist/labels/stable:predict", kRows).status, 200);
  const HttpReply none = Post("/v1/models/mnist/labels/canary:predict", kRows);
  EXPECT_EQ(none.status, 404);
  EXPECT_THAT(none.body, HasSubstr("there is stable (version 7)"));
  TryCandidate(8);
  EXPECT_EQ(GetJson("/v1/models/mnist/labels/canary")["model_version_status"][0]["version"], "8");
  EXPECT_EQ(GetJson("/v1/models/mnist/labels/stable")["model_version_status"][0]["version"], "7");
  const auto label = [&](const std::string& path) {
    const json row = json::parse(Post(path, kRows).body)["predictions"][0];
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  EXPECT_EQ(label("/v1/models/mnist:predict"), 8 % kFakeClasses);
  EXPECT_EQ(label("/v1/models/mnist/labels/canary:predict"), 8 % kFakeClasses);
  EXPECT_EQ(label("/v1/models/mnist/labels/stable:predict"), 7 % kFakeClasses);
  EXPECT_EQ(label("/v1/models/mnist/versions/7:predict"), 7 % kFakeClasses);
  const auto version = [&](const std::string& path) {
    return json::parse(Post(path, InferBody().dump(), "Millrace-Key: me\r\n").body)["model_version"];
  };
  EXPECT_EQ(version("/v2/models/mnist/infer"), "8");
  EXPECT_EQ(version("/v2/models/mnist/versions/stable/infer"), "7");
  EXPECT_EQ(version("/v2/models/mnist/versions/canary/infer"), "8");
}

TEST_F(RestApiTest, HealthAndMetadata) {
  EXPECT_EQ(GetJson("/v2")["name"], "millrace");
  EXPECT_EQ(GetJson("/v2/health/live")["live"], true);
  EXPECT_EQ(GetJson("/v2/health/ready")["ready"], true);
  EXPECT_EQ(Get("/v2/models/mnist/ready").status, 503);
  EXPECT_EQ(Get("/v2/models/mnist").status, 503);
  PublishAndLoad(7);
  EXPECT_EQ(GetJson("/v2/models/mnist/ready")["ready"], true);
  EXPECT_EQ(Get("/v2/models/mnist/versions/7/ready").status, 200);
  EXPECT_EQ(Get("/v2/models/mnist/versions/6/ready").status, 404);
  EXPECT_EQ(Get("/v2/models/other").status, 404);
  EXPECT_EQ(GetJson("/v2/models/mnist/versions/7")["inputs"][0]["shape"], json({-1, 1, 2, 3}));
  EXPECT_EQ(GetJson("/v2/models/mnist/config")["input"][0]["dims"], json({1, 2, 3}));
  ready_ = false;
  const HttpReply draining = Get("/v2/health/ready");
  EXPECT_EQ(draining.status, 503);
  EXPECT_EQ(draining.body, R"({"error":"draining"})");
  EXPECT_EQ(Get("/v2/health/live").status, 200);
}

TEST_F(RestApiTest, OpenInferenceInJsonAndBinary) {
  PublishAndLoad(7);
  const HttpReply reply = Post("/v2/models/mnist/versions/7/infer", InferBody().dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_THAT(reply.head, HasSubstr("Content-Type: application/json"));
  const json answer = json::parse(reply.body);
  EXPECT_EQ(answer["model_version"], "7");
  EXPECT_EQ(answer["parameters"]["digest"], "digest-7");
  EXPECT_EQ(answer["outputs"][0]["data"], json({0.1, 0.1, 0.1, 0.7}));

  json body = InferBody();
  body["inputs"][0].erase("data");
  body["inputs"][0]["parameters"] = {{"binary_data_size", 6}};
  body["parameters"] = {{"binary_data_output", true}};
  const std::string text = body.dump();
  const HttpReply binary = Post("/v2/models/mnist/infer", text + std::string("\0\1\2\3\4\5", 6),
                                "Inference-Header-Content-Length: " + std::to_string(text.size()) + "\r\n");
  ASSERT_EQ(binary.status, 200) << binary.body;
  const size_t at = binary.head.find("Inference-Header-Content-Length: ");
  ASSERT_NE(at, std::string::npos) << binary.head;
  EXPECT_EQ(std::stoul(binary.head.substr(at + 33)) + kFakeClasses * sizeof(float), binary.body.size());
}

TEST_F(RestApiTest, EveryFaultHasItsStatus) {
  EXPECT_EQ(Post("/v2/models/mnist/infer", InferBody().dump()).status, 503);
  PublishAndLoad(7);
  EXPECT_EQ(Post("/v2/models/other/infer", InferBody().dump()).status, 404);
  EXPECT_EQ(Post("/v2/models/mnist/versions/6/infer", InferBody().dump()).status, 404);
  EXPECT_EQ(Post("/v2/models/mnist/versions/x/infer", InferBody().dump()).status, 400);
  const HttpReply fault = Post("/v2/models/mnist/infer", InferBody({1, 2, 3}).dump());
  EXPECT_EQ(fault.status, 400);
  EXPECT_THAT(fault.body, HasSubstr("input INPUT__0 of model mnist"));
  EXPECT_EQ(Post("/v2/models/mnist/infer", "{").status, 400);
  EXPECT_EQ(Post("/v2/models/mnist/infer", "{}", "Inference-Header-Content-Length: x\r\n").status, 400);
  const HttpReply wrong_method = Get("/v2/models/mnist/infer");
  EXPECT_EQ(wrong_method.status, 405);
  EXPECT_THAT(wrong_method.head, HasSubstr("Allow: POST"));
  EXPECT_EQ(Post("/v2/models/mnist", "").status, 405);
  EXPECT_EQ(Get("/v2/repository/index").status, 405);
  for (const char* path :
       {"/v2/", "/v2/x", "/v2/models", "/v2/models/", "/v2/models/mnist/x", "/v2/models/mnist/config/x",
        "/v2/models/mnist/versions", "/v2/models/mnist/versions/7/ready/x", "/v2/repository/x", "/v1", "/v1/",
        "/v1/models", "/v1/models/mnist/labels/newest", "/v1/:predict", "/v1/models/other"}) {
    EXPECT_EQ(Get(path).status, std::string(path) == "/v2/" ? 200 : 404) << path;
  }
}

TEST_F(RestApiTest, StatisticsAndIndex) {
  EXPECT_EQ(GetJson("/v2/models/stats")["model_stats"], json::array());
  PublishAndLoad(7);
  PublishAndLoad(8, "bad");
  EXPECT_EQ(Post("/v2/models/mnist/infer", InferBody().dump()).status, 200);
  EXPECT_EQ(GetJson("/v2/models/mnist/stats")["model_stats"][0]["inference_count"], 1);
  EXPECT_EQ(GetJson("/v2/models/stats")["model_stats"][0]["inference_stats"]["success"]["count"], 1);
  json index = json::parse(Post("/v2/repository/index", "").body);
  ASSERT_EQ(index.size(), 2u);
  EXPECT_EQ(index[0]["state"], "UNAVAILABLE");
  EXPECT_EQ(index[0]["reason"], "digest: model.pt differs");
  index = json::parse(Post("/v2/repository/index", R"({"ready": true})").body);
  ASSERT_EQ(index.size(), 1u);
  EXPECT_EQ(index[0]["version"], "7");
}

TEST_F(RestApiTest, OperatorsLoadAndUnloadAndWebPagesDoNot) {
  PublishAndLoad(7);
  loader_.Start();
  const auto ask = [&](const std::string& path, const std::string& body = "", const std::string& headers = "") {
    return Post("/v2/repository/models/" + path, body, headers).status;
  };
  EXPECT_EQ(ask("mnist/unload", "", "Origin: http://elsewhere\r\n"), 403);
  EXPECT_EQ(Get("/v2/models/mnist/ready").status, 200);
  EXPECT_EQ(ask("mnist/unload"), 200);
  EXPECT_EQ(Get("/v2/models/mnist/ready").status, 503);
  EXPECT_EQ(ask("mnist/load", R"({"parameters": {"config": "{}"}})"), 400);
  EXPECT_EQ(Get("/v2/models/mnist/ready").status, 503);
  EXPECT_EQ(ask("mnist/load", "{}"), 200);
  EXPECT_EQ(Get("/v2/models/mnist/ready").status, 200);
  EXPECT_EQ(ask("other/load"), 404);
  EXPECT_EQ(ask("other/unload"), 404);
  EXPECT_EQ(RestApi(catalog_, engine_, explainer_, RealClock(), control_, {"", /*open=*/false})
                .Answer({.method = "POST", .path = "/v2/repository/models/mnist/unload", .headers = {}, .body = ""})
                .status,
            403);
}

TEST_F(RestApiTest, TensorFlowsPredictAndStatus) {
  PublishAndLoad(7);
  const HttpReply reply = Post("/v1/models/mnist:predict", kRows);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, R"({"predictions":[[0.1,0.1,0.1,0.7],[0.1,0.1,0.1,0.7]]})");
  EXPECT_EQ(Post("/v1/models/mnist/versions/7:predict", kRows).status, 200);
  EXPECT_EQ(Post("/v1/models/mnist/versions/6:predict", kRows).status, 404);
  EXPECT_EQ(Post("/v1/models/mnist:predict", "{}").status, 400);
  EXPECT_EQ(Get("/v1/models/mnist:predict").status, 405);
  EXPECT_EQ(GetJson("/v1/models/mnist")["model_version_status"][0]["state"], "AVAILABLE");
  EXPECT_EQ(Get("/v1/models/mnist/versions/6").status, 404);
}

TEST_F(RestApiTest, TheTimeoutParameterIsTheDeadline) {
  PublishAndLoad(7);
  std::vector<std::thread> busy = Occupy(2);
  json body = InferBody();
  body["parameters"] = {{"timeout", 1}};
  std::atomic<int> status = 0;
  std::thread late([&] { status = Post("/v2/models/mnist/infer", body.dump()).status; });
  EXPECT_TRUE(Eventually([&] { return status != 0 || engine_.in_flight() == 3; }));
  Release(busy);
  late.join();
  EXPECT_EQ(status, 504);
}

TEST_F(RestApiTest, OverloadIsRefusedAtOnceAndThePagesGoOnAnswering) {
  PublishAndLoad(7);
  std::vector<std::thread> busy = Occupy(16);  // as many as the engine takes
  const HttpReply full = Post("/v1/models/mnist:predict", kRows);
  EXPECT_EQ(full.status, 429);
  EXPECT_THAT(full.head, HasSubstr("Retry-After: "));
  EXPECT_EQ(Get("/v2/health/live").status, 200);
  Release(busy);
}

// Without the HTTP server, whose threads are another limit.
class RestApiLimitsTest : public EngineFixture {
 protected:
  ~RestApiLimitsTest() override { blocked_ = false; }

  HttpResponse Predict() {
    return api_.Answer({.method = "POST", .path = "/v1/models/mnist:predict", .headers = {}, .body = kRows});
  }

  InferenceEngine wide_{{.executors = 1, .requests = 64}, RealClock()};
  OpenInferenceCatalog catalog_{table_, {}, [] { return absl::OkStatus(); }};
  Explainer explainer_{metrics_, RealClock()};
  RestApi api_{catalog_, wide_, explainer_, RealClock(), control_, {"", /*open=*/true}};
};

TEST_F(RestApiLimitsTest, PredictionsAtOnce) {
  PublishAndLoad(7);
  blocked_ = true;
  std::vector<std::thread> busy;
  for (int i = 0; i < RestAdmission::kPredictionsMax; ++i) {
    busy.emplace_back([this] { EXPECT_EQ(Predict().status, 200); });
  }
  EXPECT_TRUE(Eventually([&] { return wide_.in_flight() == RestAdmission::kPredictionsMax; }));
  const HttpResponse refused = Predict();
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.body, HasSubstr("the limit of 28 predictions at once"));
  EXPECT_EQ(refused.headers.at("Retry-After"), "1");
  EXPECT_EQ(api_.Answer({.method = "GET", .path = "/v2/health/live", .headers = {}, .body = ""}).status, 200);
  blocked_ = false;
  for (std::thread& thread : busy) thread.join();
  EXPECT_EQ(Predict().status, 200);
}

}  // namespace
}  // namespace millrace
