#include "common/http_server.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<HttpServer> StartOrDie(HttpServer::Options options) {
  if (options.address.empty()) options.address = "127.0.0.1:0";
  auto server = HttpServer::Start(std::move(options));
  EXPECT_THAT(server, IsOk());
  return std::move(server).value();
}

TEST(HttpServerTest, BuiltInPages) {
  Metrics metrics("test");
  std::atomic<bool> ready = false;
  HttpServer::Options options{.metrics = &metrics};
  options.ready = [&] { return ready ? absl::OkStatus() : absl::UnavailableError("model not loaded"); };
  options.status_page = [] { return std::string("step 812: waiting for slot 5\n"); };
  const auto server = StartOrDie(options);

  EXPECT_EQ(HttpFetch(server->address(), "/healthz").status, 200);
  EXPECT_EQ(HttpFetch(server->address(), "/statusz").body, "step 812: waiting for slot 5\n");
  EXPECT_EQ(HttpFetch(server->address(), "/none").status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/healthz", "POST").status, 404);

  const HttpReply not_ready = HttpFetch(server->address(), "/readyz");
  EXPECT_EQ(not_ready.status, 503);
  EXPECT_EQ(not_ready.body, "not ready: model not loaded\n");
  ready = true;
  EXPECT_EQ(HttpFetch(server->address(), "/readyz").status, 200);

  const HttpReply page = HttpFetch(server->address(), "/metrics");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.head, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(page.body, HasSubstr("millrace_build_info"));
}

TEST(HttpServerTest, AnswersOnAUnixSocketAndRemovesItsFile) {
  TemporaryDirectory directory;
  auto server = StartOrDie({.address = "unix:" + (directory / "h").string()});
  EXPECT_EQ(HttpFetch(server->address(), "/healthz").status, 200);
  server.reset();
  EXPECT_FALSE(std::filesystem::exists(directory / "h"));
}

TEST(HttpServerTest, AnAddressInUseIsAClearError) {
  const auto server = StartOrDie({});
  EXPECT_THAT(
      HttpServer::Start({.address = server->address()}),
      StatusIs(absl::StatusCode::kAlreadyExists, "cannot listen on " + server->address() + ": address already in use"));
  EXPECT_THAT(HttpServer::Start({.address = "nonsense"}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(HttpServerTest, APageThatThrowsIsA500WithoutDetails) {
  HttpServer::Options options;
  options.status_page = []() -> std::string { throw std::runtime_error("secret"); };
  const auto server = StartOrDie(options);
  const HttpReply reply = HttpFetch(server->address(), "/statusz");
  EXPECT_EQ(reply.status, 500);
  EXPECT_EQ(reply.body, "internal error\n");
  EXPECT_EQ(reply.head.find("secret"), std::string::npos);
  EXPECT_EQ(HttpFetch(server->address(), "/healthz").status, 200);
}

TEST(HttpServerTest, ABodyOverTheLimitIsRefused) {
  const auto server = StartOrDie({});
  EXPECT_EQ(HttpFetch(server->address(), "/healthz", "POST", std::string(64 << 10, 'x')).status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/healthz", "POST", std::string((64 << 10) + 1, 'x')).status, 413);
}

TEST(HttpServerTest, ManyClientsAtOnce) {
  const auto server = StartOrDie({});
  std::atomic<int> answered = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      for (int j = 0; j < 20; ++j) answered += HttpFetch(server->address(), "/healthz").status == 200;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered, 160);
}

TEST(HttpServerTest, NonsenseAndSilenceDoNotHarmIt) {
  const auto server = StartOrDie({});
  const int silent = ConnectTo(server->address());
  const int nonsense = ConnectTo(server->address());
  const std::string bytes = "\x16\x03\x01 nonsense\r\n\r\n";
  EXPECT_EQ(write(nonsense, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(HttpFetch(server->address(), "/healthz").status, 200);
  close(silent);
  close(nonsense);
}

}  // namespace
}  // namespace millrace
