#include "common/http_server.h"

#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/eventually.h"
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

// An API that answers with what it was asked.
HttpServer::Options EchoApi() {
  HttpServer::Options options;
  options.api = {.roots = {"/v2"},
                 .pages = {"/", "/page"},
                 .answer = [](const HttpRequest& request) -> HttpResponse {
                   const auto tag = request.headers.find("x-tag");
                   std::string query;
                   for (const auto& [name, value] : request.query) query += " " + name + "=" + value;
                   return {.status = 202,
                           .body = std::string(request.method) + " " + std::string(request.path) + query + " " +
                                   (tag == request.headers.end() ? "" : tag->second) + " " +
                                   std::string(request.body.substr(0, 100)),
                           .headers = {{"X-Size", std::to_string(request.body.size())}}};
                 },
                 .body_bytes_max = 100'000,
                 .bodies_bytes_max = 150'000,
                 .threads = 8};
  return options;
}

TEST(HttpServerTest, PagesOfAnApiAreOnlyThemselvesAndOnlyRead) {
  const auto server = StartOrDie(EchoApi());
  EXPECT_EQ(HttpFetch(server->address(), "/").body, "GET /  ");
  EXPECT_EQ(HttpFetch(server->address(), "/page?a=b").body, "GET /page a=b  ");
  EXPECT_EQ(HttpFetch(server->address(), "/page/x").status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/page", "POST", "x").status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/healthz").body, "ok\n");
}

TEST(HttpServerTest, AnApiAnswersWhatIsBelowItsRoots) {
  const auto server = StartOrDie(EchoApi());
  EXPECT_EQ(HttpFetch(server->address(), "/v2").body, "GET /v2  ");
  const HttpReply reply = HttpFetch(server->address(), "/v2/a%20b?c=d%26&e", "POST", "body", "X-Tag: t\r\n");
  EXPECT_EQ(reply.status, 202);
  EXPECT_EQ(reply.body, "POST /v2/a b c=d& e= t body");
  EXPECT_THAT(reply.head, HasSubstr("Content-Type: application/json"));
  EXPECT_THAT(reply.head, HasSubstr("X-Size: 4"));
  EXPECT_EQ(HttpFetch(server->address(), "/v2/x", "DELETE").body, "DELETE /v2/x  ");
  // As curl sends any body if it is not told otherwise.
  const std::string form = "Content-Type: application/x-www-form-urlencoded\r\n";
  EXPECT_THAT(HttpFetch(server->address(), "/v2/x", "POST", std::string(50'000, '{'), form).head,
              HasSubstr("X-Size: 50000"));
  EXPECT_EQ(HttpFetch(server->address(), "/v20", "GET").status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/v20", "POST").status, 404);
  EXPECT_EQ(HttpFetch(server->address(), "/healthz").body, "ok\n");
}

TEST(HttpServerTest, AnApisBodiesHaveALimitOfTheirOwnAlsoUnpacked) {
  const auto server = StartOrDie(EchoApi());
  const auto post = [&](const std::string& path, const std::string& body, const std::string& headers = "") {
    return HttpFetch(server->address(), path, "POST", body, headers);
  };
  EXPECT_THAT(post("/v2", std::string(100'000, 'x')).head, HasSubstr("X-Size: 100000"));
  const HttpReply over = post("/v2", std::string(100'001, 'x'));
  EXPECT_EQ(over.status, 413);
  EXPECT_EQ(over.body, "{\"error\":\"the body is over the limit of 100000 bytes\"}");
  EXPECT_EQ(post("/healthz", std::string((64 << 10) + 1, 'x')).status, 413);  // that of pages stays

  const auto packed = [](size_t size) {
    const std::string text(size, 'x');
    std::string bytes(compressBound(size), '\0');
    uLongf length = bytes.size();
    EXPECT_EQ(
        compress(reinterpret_cast<Bytef*>(bytes.data()), &length, reinterpret_cast<const Bytef*>(text.data()), size),
        Z_OK);
    return bytes.substr(0, length);
  };
  const std::string deflate = "Content-Encoding: deflate\r\n";
  EXPECT_THAT(post("/v2", packed(100'000), deflate).head, HasSubstr("X-Size: 100000"));
  EXPECT_EQ(post("/v2", packed(100'001), deflate).status, 413);
  EXPECT_EQ(post("/v2", packed(4 << 20), deflate).status, 413);
  EXPECT_EQ(post("/healthz", packed(4 << 20), deflate).status, 413);
  EXPECT_EQ(post("/v2", "no such thing", deflate).status, 400);
  EXPECT_EQ(post("/v2", "x", "Content-Type: multipart/form-data; boundary=b\r\n").status, 415);
  EXPECT_EQ(HttpFetch(server->address(), "/v2/" + std::string(600, 'a')).status, 414);
}

TEST(HttpServerTest, BodiesAtOnceHaveALimit) {
  HttpServer::Options options = EchoApi();
  std::atomic<bool> blocked = true;
  std::atomic<int> entered = 0;
  options.api.answer = [&](const HttpRequest&) -> HttpResponse {
    ++entered;
    while (blocked) std::this_thread::yield();
    return {};
  };
  const auto server = StartOrDie(std::move(options));
  std::thread first(
      [&] { EXPECT_EQ(HttpFetch(server->address(), "/v2", "POST", std::string(90'000, 'x')).status, 200); });
  EXPECT_TRUE(Eventually([&] { return entered == 1; }));
  const HttpReply refused = HttpFetch(server->address(), "/v2", "POST", std::string(60'001, 'x'));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.head, HasSubstr("Retry-After: 1"));
  EXPECT_THAT(refused.body, HasSubstr("the limit of 150000 bytes"));
  blocked = false;
  first.join();
  EXPECT_EQ(HttpFetch(server->address(), "/v2", "POST", std::string(100'000, 'x')).status, 200);
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
