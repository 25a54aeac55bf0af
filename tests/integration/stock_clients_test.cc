// Clients that others wrote, against the real program: Triton's (tests/clients/triton_client.py) and its perf_analyzer,
// grpcurl (by reflection), curl, and what the README says to type.
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/model/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/services/model/exported_model.h"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

const std::filesystem::path kSource = MILLRACE_SOURCE_DIR;
const std::filesystem::path kClients = kSource / "build/clients";  // made by tests/clients/install.sh
const std::filesystem::path kPython = kClients / "bin/python3";
const std::filesystem::path kPerfAnalyzer = kClients / "perf_analyzer/perf_analyzer";

class StockClientsTest : public ::testing::Test {
 protected:
  StockClientsTest() {
    ConfigureTorch(1);
    ExportVersion(root_ / "models", 469, *InitialParameters(DefaultNetwork(), 7));
    server_ = std::make_unique<ChildProcess>(
        std::vector<std::string>{MILLRACE_MODEL_PATH, "--repository", (root_ / "models").string(), "--listen",
                                 "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--drain-seconds", "0"});
    const std::vector<std::string> words = absl::StrSplit(server_->ReadLine(), ' ');
    grpc_ = words.at(1).substr(std::string("grpc=").size());
    http_ = words.at(2).substr(std::string("http=").size());
    EXPECT_TRUE(Eventually([&] { return HttpFetch(http_, "/v2/models/mnist/ready").status == 200; }));
  }
  ~StockClientsTest() override {
    server_->Kill(SIGTERM);
    EXPECT_EQ(server_->Wait(), 0);
  }

  // From the README, between `begin` and the next `end`, with the addresses of this server.
  std::string FromReadme(const std::string& begin, const std::string& end) const {
    std::ostringstream readme;
    readme << std::ifstream(kSource / "README.md").rdbuf();
    const size_t first = readme.str().find(begin), last = readme.str().find(end, first + begin.size());
    if (first == std::string::npos || last == std::string::npos) {
      ADD_FAILURE() << "README.md has no " << begin;
      return "";
    }
    return absl::StrReplaceAll(readme.str().substr(first, last - first),
                               {{"127.0.0.1:8500", grpc_}, {"127.0.0.1:8501", http_}});
  }

  static bool IsThere(const std::filesystem::path& client) {
    if (std::filesystem::exists(client)) return true;
    std::cerr << "SKIPPED: " << client << " is not installed; tests/clients/install.sh does it\n";
    return false;
  }

  // Installed by tests/install_tools.sh.
  static std::filesystem::path Tool(const std::string& name) {
    ChildProcess where({kSource / "tests/install_tools.sh", "--dir"});
    return std::filesystem::path(where.ReadLine()) / "bin" / name;
  }
  static bool GrpcurlIsThere() {
    if (std::filesystem::exists(Tool("grpcurl"))) return true;
    EXPECT_EQ(std::getenv("CI"), nullptr) << "grpcurl is not installed";
    std::cerr << "SKIPPED: grpcurl is not installed; tests/install_tools.sh does it\n";
    return false;
  }

  // What the command prints; it must succeed.
  static std::string Run(const std::vector<std::string>& command) {
    ChildProcess child(command);
    EXPECT_EQ(child.Wait(), 0) << child.all_of_stderr();
    return child.rest_of_stdout();
  }
  static std::vector<std::string> GrpcurlCommand(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {Tool("grpcurl"), "-plaintext"});
    return arguments;
  }
  static std::string Grpcurl(const std::vector<std::string>& arguments) { return Run(GrpcurlCommand(arguments)); }

  const TemporaryDirectory root_;
  std::unique_ptr<ChildProcess> server_;
  std::string grpc_, http_;
};

TEST_F(StockClientsTest, TritonsClientOverGrpcAndHttp) {
  if (!IsThere(kPython)) GTEST_SKIP();
  ChildProcess client({kPython, kSource / "tests/clients/triton_client.py", grpc_, http_, "mnist", "469"});
  EXPECT_EQ(client.Wait(), 0) << client.rest_of_stdout() << client.all_of_stderr();
}

// Reads metadata, configuration and, before and after, statistics.
TEST_F(StockClientsTest, TritonsPerfAnalyzerOverGrpcStreamsAndHttp) {
  if (!IsThere(kPerfAnalyzer)) GTEST_SKIP();
  for (const std::vector<std::string>& protocol :
       std::vector<std::vector<std::string>>{{"-i", "grpc", "-u", grpc_},
                                             {"-i", "grpc", "-u", grpc_, "--streaming", "--async"},
                                             {"-i", "http", "-u", http_}}) {
    std::vector<std::string> command = {"/usr/bin/env",
                                        "LD_LIBRARY_PATH=" + kPerfAnalyzer.parent_path().string(),
                                        kPerfAnalyzer,
                                        "-m",
                                        "mnist",
                                        "--request-count",
                                        "50"};
    command.insert(command.end(), protocol.begin(), protocol.end());
    const std::string report = Run(command);
    // How many of them fall between its two looks at the server's statistics is the machine's affair.
    EXPECT_THAT(report, ContainsRegex("  Request count: [1-9]"));
    EXPECT_THAT(report, ContainsRegex("Successful request count: [1-9]"));
  }
}

// Knows of every service what reflection tells, gRPC's own included.
TEST_F(StockClientsTest, Grpcurl) {
  if (!GrpcurlIsThere()) GTEST_SKIP();
  EXPECT_THAT(Grpcurl({grpc_, "describe"}), AllOf(HasSubstr("inference.GRPCInferenceService is a service"),
                                                  HasSubstr("millrace.v1.ModelService is a service"),
                                                  HasSubstr("grpc.health.v1.Health is a service")));
  const std::vector<std::string> check = {"-d", R"({"service": "mnist"})", grpc_, "grpc.health.v1.Health/Check"};
  // Health follows readiness by some tenths of a second, and knows no model's name before.
  EXPECT_TRUE(Eventually([&] { return ChildProcess(GrpcurlCommand(check)).Wait() == 0; }));
  EXPECT_THAT(Grpcurl(check), HasSubstr(R"("status": "SERVING")"));
  const nlohmann::json request = {{"model_name", "mnist"},
                                  {"inputs",
                                   {{{"name", "INPUT__0"},
                                     {"datatype", "UINT8"},
                                     {"shape", {1, 1, 28, 28}},
                                     {"contents", {{"uint_contents", std::vector<int>(784, 0)}}}}}}};
  const nlohmann::json answer =
      nlohmann::json::parse(Grpcurl({"-d", request.dump(), grpc_, "inference.GRPCInferenceService/ModelInfer"}));
  EXPECT_EQ(answer["model_version"], "469") << answer;
  EXPECT_EQ(answer["outputs"][0]["contents"]["fp32_contents"].size(), 10u) << "typed, as the request was: " << answer;
}

TEST_F(StockClientsTest, TheReadmesGrpcurlLine) {
  if (!GrpcurlIsThere()) GTEST_SKIP();
  const std::string line = FromReadme("$ grpcurl ", "\n").substr(std::string("$ grpcurl").size());
  EXPECT_THAT(Run({"/bin/bash", "-c", Tool("grpcurl").string() + line}), HasSubstr(R"("ready": true)"));
}

TEST_F(StockClientsTest, TheReadmesPythonExample) {
  if (!IsThere(kPython)) GTEST_SKIP();
  std::ofstream(root_ / "example.py") << FromReadme("import numpy as np\nimport tritonclient.grpc", "```");
  ChildProcess example({kPython, root_ / "example.py"});
  EXPECT_EQ(example.Wait(), 0) << example.all_of_stderr();
  EXPECT_THAT(example.rest_of_stdout(), MatchesRegex("[0-9], probability [01]\\.[0-9][0-9], by version 469\n"));
}

TEST_F(StockClientsTest, TheReadmesCurlLine) {
  const std::string prompt = "$ curl -s 127.0.0.1:8501/v1/models/mnist:predict ";
  const std::string line = FromReadme(prompt, "\n").substr(2);
  ChildProcess curl({"/bin/bash", "-c", line});
  EXPECT_EQ(curl.Wait(), 0) << line << ": " << curl.all_of_stderr();
  const std::string answer = curl.rest_of_stdout();
  EXPECT_EQ(nlohmann::json::parse(answer)["predictions"][0].size(), 10u) << answer;
}

TEST_F(StockClientsTest, CurlWithABinaryTensor) {
  const std::string head = R"({"inputs":[{"name":"INPUT__0","datatype":"UINT8","shape":[1,1,28,28],)"
                           R"("parameters":{"binary_data_size":784}}]})";
  std::ofstream(root_ / "body", std::ios::binary) << head << std::string(784, '\0');
  ChildProcess curl({"/usr/bin/curl", "-s", "-H", absl::StrCat("Inference-Header-Content-Length: ", head.size()),
                     "--data-binary", absl::StrCat("@", (root_ / "body").string()),
                     absl::StrCat("http://", http_, "/v2/models/mnist/infer")});
  EXPECT_EQ(curl.Wait(), 0) << curl.all_of_stderr();
  const std::string answer = curl.rest_of_stdout();
  EXPECT_EQ(nlohmann::json::parse(answer)["outputs"][0]["shape"], nlohmann::json({1, 10})) << answer;
}

}  // namespace
}  // namespace millrace
