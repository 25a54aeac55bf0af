#include "common/service_runtime.h"

#include <algorithm>
#include <csignal>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/address.h"
#include "common/grpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/model.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::vector<std::string> Tiny(std::vector<std::string> flags = {}) {
  flags.insert(flags.begin(), TINY_SERVICE_PATH);
  return flags;
}

struct Addresses {
  std::string grpc, http;
};

Addresses ParseListening(const std::string& line) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ');
  if (words.size() != 3 || words[0] != "LISTENING") {
    ADD_FAILURE() << "not a LISTENING line: '" << line << "'";
    return {};
  }
  return {words[1].substr(std::string("grpc=").size()), words[2].substr(std::string("http=").size())};
}

grpc::Status Predict(const std::string& address, const std::string& model) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::PredictRequest request;
  request.set_model(model);
  v1::PredictResponse response;
  return v1::ModelService::NewStub(MakeChannel(address))->Predict(&context, request, &response);
}

TEST(RunServiceTest, AnnouncesServesAndDrainsOnSigterm) {
  ChildProcess child(Tiny());
  const Addresses addresses = ParseListening(child.ReadLine());
  EXPECT_THAT(addresses.grpc, MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_TRUE(Predict(addresses.grpc, "m").ok());
  EXPECT_EQ(HttpFetch(addresses.http, "/readyz").status, 200);
  const HttpReply page = HttpFetch(addresses.http, "/statusz");
  EXPECT_THAT(page.body, HasSubstr("tiny "));
  EXPECT_THAT(page.body, HasSubstr("nothing to do\n"));
  EXPECT_THAT(HttpFetch(addresses.http, "/metrics").body, HasSubstr("grpc_server_handled_total"));

  RawStream health(MakeChannel(addresses.grpc), "/grpc.health.v1.Health/Check");
  health.Write("");
  health.WritesDone();
  EXPECT_EQ(health.Read(), "\x08\x01");  // SERVING
  EXPECT_TRUE(health.Finish().ok());

  child.Kill(SIGTERM);
  EXPECT_EQ(child.Wait(), 0) << child.all_of_stderr();
  EXPECT_EQ(child.rest_of_stdout(), "");  // one line, no more
  EXPECT_THAT(child.all_of_stderr(), HasSubstr("stopped"));
}

TEST(RunServiceTest, ACallInFlightIsAnsweredDuringTheDrain) {
  ChildProcess child(Tiny());
  const Addresses addresses = ParseListening(child.ReadLine());
  grpc::Status status;
  std::thread caller([&] { status = Predict(addresses.grpc, "slow"); });
  EXPECT_TRUE(
      Eventually([&] { return HttpFetch(addresses.http, "/metrics").body.find("Predict\"} 1") != std::string::npos; }));
  child.Kill(SIGTERM);
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(child.Wait(), 0);
}

TEST(RunServiceTest, UnixSocketsAndAbsentListeners) {
  TemporaryDirectory directory;
  const std::string address = "unix:" + (directory / "g").string();
  ChildProcess child(Tiny({"--listen", address, "--http-listen", ""}));
  EXPECT_EQ(child.ReadLine(), "LISTENING grpc=" + address + " http=-");
  EXPECT_TRUE(Predict(address, "m").ok());
  child.Kill(SIGINT);
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(directory / "g"));
}

TEST(RunServiceTest, StartsInUnder100Milliseconds) {
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < 5; ++i) {
    const absl::Time start = absl::Now();
    ChildProcess child(Tiny());
    ASSERT_NE(child.ReadLine(), "");
    best = std::min(best, absl::Now() - start);
  }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take longer: " << best;
#endif
  EXPECT_LT(best, absl::Milliseconds(100));
}

TEST(RunServiceTest, AServiceCanEndItself) {
  ChildProcess done(Tiny());
  EXPECT_TRUE(Predict(ParseListening(done.ReadLine()).grpc, "stop").ok());
  EXPECT_EQ(done.Wait(), 0);

  ChildProcess failed(Tiny());
  EXPECT_TRUE(Predict(ParseListening(failed.ReadLine()).grpc, "fail").ok());
  EXPECT_EQ(failed.Wait(), 78);
  EXPECT_THAT(failed.all_of_stderr(), HasSubstr("the data went away"));
}

TEST(RunServiceTest, FaultsAreOneLineAndTheDocumentedExitCode) {
  const ListeningSocket taken = ListeningSocket::Bind(*ParseAddress("127.0.0.1:0")).value();
  const std::string in_use = taken.address().ToString();
  const std::vector<std::tuple<std::vector<std::string>, int, std::string>> cases = {
      {{"--no-such-flag"}, 64, "--no-such-flag"},          {{"--listen", "nonsense"}, 64, "nonsense"},
      {{"--listen", "0.0.0.0:0"}, 78, "--insecure"},       {{"--http-listen", "[::]:0"}, 78, "--insecure"},
      {{"--tls-cert", "/none"}, 78, "--tls-key"},          {{"--run-token-file", "/run/token"}, 78, "plain text"},
      {{"--log-level", "loud"}, 64, "--log-level"},        {{"--tiny-data-dir", "/none"}, 78, "no data in /none"},
      {{"--listen", in_use}, 1, "address already in use"}, {{"--http-listen", in_use}, 1, "address already in use"},
  };
  for (const auto& [flags, code, message] : cases) {
    ChildProcess child(Tiny(flags));
    EXPECT_EQ(child.Wait(), code) << message;
    EXPECT_EQ(child.rest_of_stdout(), "");
    EXPECT_THAT(child.all_of_stderr(), HasSubstr(message));
    EXPECT_EQ(std::count(child.all_of_stderr().begin(), child.all_of_stderr().end(), '\n'), 1) << child.all_of_stderr();
  }
}

TEST(RunServiceTest, HealthcheckAsksTheServiceThatRunsWithTheSameFlags) {
  ChildProcess child(Tiny());
  const std::string http = ParseListening(child.ReadLine()).http;
  ChildProcess alive(Tiny({"--http-listen", http, "--healthcheck"}));
  EXPECT_EQ(alive.Wait(), 0) << alive.all_of_stderr();
  EXPECT_EQ(alive.rest_of_stdout(), "");
  child.Kill(SIGTERM);
  EXPECT_EQ(child.Wait(), 0);
  ChildProcess gone(Tiny({"--healthcheck", "--http-listen", http}));
  EXPECT_EQ(gone.Wait(), 1);
  EXPECT_THAT(gone.all_of_stderr(), HasSubstr(http + " does not answer"));
}

TEST(RunServiceTest, JsonLogLinesAreJson) {
  ChildProcess child(Tiny({"--log-format", "json"}));
  ASSERT_NE(child.ReadLine(), "");
  child.Kill(SIGTERM);
  EXPECT_EQ(child.Wait(), 0);
  int lines = 0;
  const std::vector<std::string> all = absl::StrSplit(child.all_of_stderr(), '\n', absl::SkipEmpty());
  for (const std::string& line : all) {
    EXPECT_EQ(nlohmann::json::parse(line).at("service"), "tiny");
    ++lines;
  }
  EXPECT_GE(lines, 3);
}

}  // namespace
}  // namespace millrace
