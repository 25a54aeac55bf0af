// Clients that others wrote, against the real program: Triton's (tests/clients/triton_client.py), gRPC's own by
// reflection (grpc_client.py), curl, and what the README says to type.
#include <csignal>
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

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

const std::filesystem::path kSource = MILLRACE_SOURCE_DIR;
const std::filesystem::path kPython = kSource / "build/clients/bin/python3";  // tests/clients/install.sh

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

  static bool ClientsAreThere() {
    if (std::filesystem::exists(kPython)) return true;
    std::cerr << "SKIPPED: the stock clients are not installed; tests/clients/install.sh does it\n";
    return false;
  }

  const TemporaryDirectory root_;
  std::unique_ptr<ChildProcess> server_;
  std::string grpc_, http_;
};

TEST_F(StockClientsTest, TritonsClientOverGrpcAndHttp) {
  if (!ClientsAreThere()) GTEST_SKIP();
  ChildProcess client({kPython, kSource / "tests/clients/triton_client.py", grpc_, http_, "mnist", "469"});
  EXPECT_EQ(client.Wait(), 0) << client.rest_of_stdout() << client.all_of_stderr();
}

TEST_F(StockClientsTest, ReflectionAndHealth) {
  if (!ClientsAreThere()) GTEST_SKIP();
  ChildProcess client({kPython, kSource / "tests/clients/grpc_client.py", grpc_, "mnist", "469"});
  EXPECT_EQ(client.Wait(), 0) << client.rest_of_stdout() << client.all_of_stderr();
}

TEST_F(StockClientsTest, TheReadmesPythonExample) {
  if (!ClientsAreThere()) GTEST_SKIP();
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
