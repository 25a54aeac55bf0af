// Our own JSON for pictures, and the page, with fake models.
#include "services/model/picture_api.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/model/rest_api.h"
#include "tests/services/model/engine_fixture.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<uint8_t> kPixels = {1, 2, 3, 40, 50, 60};

std::string Png() {
  const Bytes bytes = EncodePng(kFakeShape.width, kFakeShape.height, PNG_FORMAT_GRAY, kPixels.data());
  return {bytes.begin(), bytes.end()};
}

class PictureApiTest : public EngineFixture {
 protected:
  ~PictureApiTest() override { blocked_ = false; }

  HttpResponse Ask(const std::string& method, const std::string& path, const std::string& body = "",
                   std::map<std::string, std::string> query = {}, const std::string& type = "image/png") {
    return api_.Answer(
        {.method = method, .path = path, .query = std::move(query), .headers = {{"content-type", type}}, .body = body});
  }
  HttpResponse Predict(const std::string& body = Png(), const std::string& type = "image/png") {
    return Ask("POST", "/api/models/mnist/predict", body, {}, type);
  }
  HttpResponse Explain(std::map<std::string, std::string> query = {}) {
    return Ask("POST", "/api/models/mnist/explain", Png(), std::move(query));
  }
  static json Parse(const HttpResponse& response) {
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body, nullptr, false);
  }

  OpenInferenceCatalog catalog_{table_, {.executors = 2, .requests = 16}, [] { return absl::OkStatus(); }};
  Explainer explainer_{metrics_, RealClock()};
  RestApi api_{catalog_, engine_, explainer_, RealClock(), control_, {"", /*open=*/true}};
};

TEST_F(PictureApiTest, WhatServes) {
  EXPECT_EQ(Ask("GET", "/api/models").body, "[]");
  PublishAndLoad(7);
  PublishAndLoad(8, "bad");
  const HttpResponse response = Ask("GET", "/api/models");
  EXPECT_EQ(Parse(response), json::parse(R"([{"model": "mnist", "version": "7", "step": 7, "digest": "digest-7",
      "accuracy": 0.5, "input": {"channels": 1, "height": 2, "width": 3}, "classes": 4}])"));
  EXPECT_EQ(response.headers.at("Connection"), "close");
}

TEST_F(PictureApiTest, APredictionShowsWhatTheModelSaw) {
  PublishAndLoad(7);
  const json answer = Parse(Predict());
  EXPECT_EQ(answer["version"], "7");
  EXPECT_EQ(answer["image"], json(kPixels));
  EXPECT_EQ(answer["label"], 3);
  EXPECT_EQ(answer["probabilities"], json::parse("[0.1, 0.1, 0.1, 0.7]"));
  for (const char* part : {"prepare", "queue", "batch_wait", "compute"}) {
    EXPECT_TRUE(answer["microseconds"][part].is_number_integer()) << part;
  }
  EXPECT_FALSE(answer.contains("error"));

  PublishAndLoad(8);
  EXPECT_EQ(Parse(Predict())["version"], "8");
  EXPECT_EQ(Parse(Ask("POST", "/api/models/mnist/versions/8/predict", Png()))["label"], 0);
}

TEST_F(PictureApiTest, OfAnAutoencoderTheReconstructionAndItsError) {
  PublishAndLoad(7, "autoencoder");
  const json answer = Parse(Predict());
  EXPECT_EQ(answer["classes"], 0);
  EXPECT_EQ(answer["reconstruction"], json::parse("[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]"));
  EXPECT_EQ(answer["error"], 7);
  EXPECT_FALSE(answer.contains("probabilities"));
}

TEST_F(PictureApiTest, AnExplanationIsAMapOfThatImage) {
  PublishAndLoad(7);
  const json first = Parse(Explain());
  EXPECT_EQ(first["image"], json(kPixels));
  EXPECT_EQ(first["map"], json(std::vector<float>(kPixels.begin(), kPixels.end())));
  EXPECT_EQ(first["method"], "integrated-gradients");
  EXPECT_EQ(first["score"], 7);
  EXPECT_EQ(first["completeness_error"], 0);
  EXPECT_EQ(first["cached"], false);
  EXPECT_EQ(Parse(Explain())["cached"], true);
  EXPECT_EQ(Parse(Explain({{"method", "occlusion"}}))["cached"], false);
  EXPECT_EQ(Parse(Explain({{"method", "occlusion"}}))["method"], "occlusion");
  EXPECT_EQ(Parse(Explain({{"target", "2"}}))["cached"], false);
}

TEST_F(PictureApiTest, EveryFaultHasItsStatus) {
  EXPECT_EQ(Predict().status, 503);
  PublishAndLoad(7);
  const HttpResponse text = Predict(Png(), "text/plain");
  EXPECT_EQ(text.status, 415);
  EXPECT_THAT(text.body, HasSubstr("image/png"));
  const HttpResponse broken = Predict("not a picture");
  EXPECT_EQ(broken.status, 400);
  EXPECT_THAT(broken.body, HasSubstr("neither PNG nor JPEG"));
  EXPECT_EQ(Predict("").status, 400);
  EXPECT_THAT(Explain({{"method", "guess"}}).body, HasSubstr("method guess is not integrated-gradients"));
  EXPECT_THAT(Explain({{"target", "x"}}).body, HasSubstr("target is not a class: x"));
  EXPECT_EQ(Ask("POST", "/api/models/other/predict", Png()).status, 404);
  EXPECT_EQ(Ask("POST", "/api/models/mnist/versions/6/predict", Png()).status, 404);
  EXPECT_EQ(Ask("GET", "/api/models/mnist/predict").status, 405);
  EXPECT_EQ(Ask("POST", "/api/models", Png()).status, 405);
  for (const char* path : {"/api", "/api/", "/api/x", "/api/models/", "/api/models/mnist", "/api/models/mnist/x",
                           "/api/models/mnist/predict/x", "/api/models/mnist/versions/7", "/api/x/mnist/predict"}) {
    EXPECT_EQ(Ask("POST", path, Png()).status, 404) << path;
  }
}

TEST_F(PictureApiTest, IsWithinTheLimitsOfAllOfRest) {
  PublishAndLoad(7);
  blocked_ = true;
  std::vector<std::thread> busy;
  for (int i = 0; i < 16; ++i) busy.emplace_back([this] { EXPECT_EQ(Predict().status, 200); });
  EXPECT_TRUE(Eventually([&] { return engine_.in_flight() == 16; }));
  EXPECT_EQ(Predict().status, 429);  // the engine's
  // One explanation is being computed, as many wait as may, and with the predictions they would be too many.
  std::atomic<int> refused = 0;
  for (int i = 0; i < RestAdmission::kPredictionsMax - 16; ++i) {
    busy.emplace_back([this, &refused] { refused += Explain({{"method", "saliency"}}).status == 429; });
  }
  EXPECT_TRUE(Eventually([&] {
    return Ask("POST", "/api/models/mnist/versions/7/predict", Png()).body.find("at once over REST") !=
           std::string::npos;
  }));
  EXPECT_EQ(Ask("GET", "/api/models").status, 200);
  blocked_ = false;
  for (std::thread& thread : busy) thread.join();
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(Predict().status, 200);
}

TEST_F(PictureApiTest, ThePageRunsNothingButItself) {
  const HttpResponse page = Ask("GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.content_type, "text/html; charset=utf-8");
  const std::string& policy = page.headers.at("Content-Security-Policy");
  EXPECT_THAT(policy, HasSubstr("default-src 'none';"));
  EXPECT_THAT(policy, HasSubstr("connect-src 'self';"));
  EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
  for (const std::string tag : {"script", "style"}) {
    const size_t begin = page.body.find("<" + tag + ">") + tag.size() + 2;
    const std::string source = page.body.substr(begin, page.body.find("</" + tag + ">") - begin);
    ASSERT_GT(source.size(), 1000u);
    const std::string digest = absl::Base64Escape(absl::HexStringToBytes(Sha256Hex(source)));
    EXPECT_THAT(policy, HasSubstr(tag + "-src 'sha256-" + digest + "'"));
    EXPECT_EQ(page.body.find("<" + tag, begin), std::string::npos) << "another one, which the policy would not let run";
  }
  EXPECT_THAT(page.body, Not(HasSubstr("https://")));
  EXPECT_THAT(page.body, Not(HasSubstr("src=")));
  EXPECT_EQ(page.headers.at("X-Content-Type-Options"), "nosniff");
}

TEST_F(PictureApiTest, ThePageIsSentAgainOnlyIfItIsAnother) {
  const HttpResponse page = Ask("GET", "/");
  EXPECT_EQ(page.headers.at("Cache-Control"), "no-cache");
  HttpRequest again{.method = "GET", .path = "/", .headers = {{"if-none-match", page.headers.at("ETag")}}, .body = ""};
  EXPECT_EQ(api_.Answer(again).status, 304);
  EXPECT_EQ(api_.Answer(again).body, "");
  again.headers["if-none-match"] = "\"of another build\"";
  EXPECT_EQ(api_.Answer(again).status, 200);
}

TEST_F(PictureApiTest, TheVersionThatAnswersExplains) {
  PublishAndLoad(7);
  TryCandidate(8);
  EXPECT_EQ(Parse(Predict())["version"], "8");
  EXPECT_EQ(Parse(Explain())["version"], "8");
  EXPECT_EQ(Parse(Ask("POST", "/api/models/mnist/versions/7/explain", Png()))["version"], "7");
}

TEST_F(PictureApiTest, OverHttp) {
  PublishAndLoad(7);
  const auto server = HttpServer::Start({.address = "unix:" + (root_ / "http").string(), .api = api_.Api()});
  ASSERT_THAT(server, IsOk());
  const std::string& address = (*server)->address();
  const HttpReply page = HttpFetch(address, "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, HasSubstr("<!doctype html>"));
  EXPECT_EQ(HttpFetch(address, "/index.html").status, 404);
  EXPECT_EQ(HttpFetch(address, "/", "POST", "x").status, 404);
  const HttpReply explained = HttpFetch(address, "/api/models/mnist/explain?method=occlusion&target=2", "POST", Png(),
                                        "Content-Type: image/png\r\n");
  ASSERT_EQ(explained.status, 200) << explained.body;
  EXPECT_EQ(json::parse(explained.body)["method"], "occlusion");
}

}  // namespace
}  // namespace millrace
