// millrace-model as a process: flags, exit codes, readiness, health, drain.
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/grpc_channel.h"
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/model.grpc.pb.h"
#include "tests/services/model/exported_model.h"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class ModelProcessTest : public ::testing::Test {
 protected:
  std::vector<std::string> Command(std::vector<std::string> flags = {}, const std::string& listen = "127.0.0.1:0") {
    std::vector<std::string> command = {
        MILLRACE_MODEL_PATH, "--repository", (root_ / "models").string(), "--listen", listen,
        "--http-listen",     "127.0.0.1:0",  "--poll-interval-ms",        "10"};
    command.insert(command.end(), flags.begin(), flags.end());
    return command;
  }
  void ReadAddresses(ChildProcess& child) {
    const std::vector<std::string> words = absl::StrSplit(child.ReadLine(), ' ');
    ASSERT_EQ(words.size(), 3u);
    grpc_ = words[1].substr(std::string("grpc=").size());
    http_ = words[2].substr(std::string("http=").size());
  }
  void Export(uint64_t version) {
    ConfigureTorch(1);
    ExportVersion(root_ / "models", version, *InitialParameters(DefaultNetwork(), version));
  }
  grpc::Status Predict(v1::PredictResponse* response) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::PredictRequest request;
    request.set_raw(std::string(28 * 28, '\0'));
    return v1::ModelService::NewStub(MakeChannel(grpc_))->Predict(&context, request, response);
  }
  // The answer's wire form: SERVING is "\x08\x01"; an unknown name has none.
  std::string Health(const std::string& name) {
    RawStream call(MakeChannel(grpc_), "/grpc.health.v1.Health/Check");
    call.Write(name.empty() ? "" : std::string("\x0a") + static_cast<char>(name.size()) + name);
    call.WritesDone();
    return call.Read().value_or("no answer");
  }
  int Ready() { return HttpFetch(http_, "/readyz").status; }

  const TemporaryDirectory root_;
  std::string grpc_, http_;
};

TEST_F(ModelProcessTest, WaitsForARepositoryServesDrainsAndExitsCleanly) {
  ChildProcess child(Command({"--drain-seconds", "1"}));
  ReadAddresses(child);
  EXPECT_EQ(Ready(), 503);
  v1::PredictResponse response;
  EXPECT_EQ(Predict(&response).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Health("mnist"), "no answer");

  Export(469);
  ASSERT_TRUE(Eventually([&] { return Ready() == 200; }));
  ASSERT_TRUE(Predict(&response).ok());
  EXPECT_EQ(response.version(), 469u);
  EXPECT_EQ(response.predictions(0).probabilities_size(), 10);
  EXPECT_TRUE(Eventually([&] { return Health("") == "\x08\x01" && Health("mnist") == "\x08\x01"; }));
  EXPECT_THAT(HttpFetch(http_, "/statusz").body, HasSubstr("469 SERVING"));
  EXPECT_THAT(HttpFetch(http_, "/metrics").body, HasSubstr("millrace_model_active_version{model=\"mnist\"} 469"));

  // Not ready at once, yet what still comes is answered.
  child.Kill(SIGTERM);
  EXPECT_TRUE(Eventually([&] { return Ready() == 503; }));
  EXPECT_TRUE(Predict(&response).ok());
  EXPECT_EQ(child.Wait(), 0) << child.all_of_stderr();
}

// Must-hold 5, as an operator sees it: a version that must not be served is named in the log and counted, with the
// reason, while the one before goes on serving.
TEST_F(ModelProcessTest, ADamagedVersionIsRefusedInTheLogAndTheMetrics) {
  Export(469);
  ChildProcess child(Command({"--drain-seconds", "0"}));
  ReadAddresses(child);
  ASSERT_TRUE(Eventually([&] { return Ready() == 200; }));

  // Damaged before it is in sight, as by a copy that went wrong.
  const std::filesystem::path elsewhere = root_ / "elsewhere";
  ExportVersion(elsewhere, 938, *InitialParameters(DefaultNetwork(), 938));
  std::fstream model(elsewhere / "mnist/938/model.pt", std::ios::in | std::ios::out | std::ios::binary);
  model.seekg(5000);
  const char byte = static_cast<char>(model.get());
  model.seekp(5000);
  model.put(static_cast<char>(byte ^ 4));
  model.close();
  std::filesystem::rename(elsewhere / "mnist/938", root_ / "models/mnist/938");

  const std::string counted = "millrace_model_loads_total{model=\"mnist\",reason=\"digest\",result=\"refused\"} 1";
  EXPECT_TRUE(Eventually([&] { return HttpFetch(http_, "/metrics").body.find(counted) != std::string::npos; }))
      << HttpFetch(http_, "/metrics").body;
  EXPECT_THAT(HttpFetch(http_, "/statusz").body, HasSubstr("938 REFUSED"));
  EXPECT_EQ(Ready(), 200);
  v1::PredictResponse response;
  ASSERT_TRUE(Predict(&response).ok());
  EXPECT_EQ(response.version(), 469u);

  child.Kill(SIGTERM);
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_THAT(child.all_of_stderr(), ContainsRegex("refused a version model=mnist version=938 reason=digest "
                                                   "error=.*model.pt has SHA-256 .*serving=469"));
}

TEST_F(ModelProcessTest, FaultsHaveTheirExitCodes) {
  ChildProcess usage({MILLRACE_MODEL_PATH, "--no-such-flag"});
  EXPECT_EQ(usage.Wait(), 64);
  ChildProcess no_repository({MILLRACE_MODEL_PATH});
  EXPECT_EQ(no_repository.Wait(), 64);
  ChildProcess range(Command({"--max-in-flight", "0"}));
  EXPECT_EQ(range.Wait(), 64) << range.all_of_stderr();

  std::ofstream(root_ / "models") << "a file";
  ChildProcess file(Command());
  EXPECT_EQ(file.Wait(), 78);
  EXPECT_THAT(file.all_of_stderr(), HasSubstr("is not a directory"));
  std::filesystem::remove(root_ / "models");

  ChildProcess first(Command({"--drain-seconds", "0"}));
  ReadAddresses(first);
  ChildProcess second(Command({}, grpc_));
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.all_of_stderr(), HasSubstr("in use"));
  first.Kill(SIGTERM);
  EXPECT_EQ(first.Wait(), 0);
}

}  // namespace
}  // namespace millrace
