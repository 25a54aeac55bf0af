// A model service that shares no disk with the trainer: versions come to it over gRPC while they are made.
#include <csignal>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/output_directory.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string ContentsOf(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// The version that the service's status page says is SERVING; 0 if there is none.
uint64_t Serving(const std::string& http) {
  std::istringstream page(HttpFetch(http, "/statusz").body);
  for (std::string line; std::getline(page, line);) {
    std::istringstream words(line);
    std::string model, state;
    uint64_t version = 0;
    if (words >> model >> version >> state && state == "SERVING") return version;
  }
  return 0;
}

TEST(VersionSourceTest, VersionsAreServedWhileTheyAreMadeWithoutASharedDisk) {
  const TemporaryDirectory temporary;
  WriteIdxDataset(temporary / "data");
  ClusterProcess run(temporary / "out", temporary / "data",
                     {"--epochs", "8", "--batch-size", "64", "--workers", "1", "--no-serving"});
  run.WaitUntil([](const v1::JobStatus& status) { return status.exported_version() > 0; });
  const std::string source = ReadClusterRecord(temporary / "out")->coordinator;
  const fs::path mirror = temporary / "elsewhere/models";
  Program model("millrace-model",
                {"--source", "grpc://" + source, "--repository", mirror, "--listen", "127.0.0.1:0", "--http-listen",
                 "127.0.0.1:0", "--poll-interval-ms", "20", "--drain-seconds", "0"},
                temporary / "model.stderr");
  const std::string http = model.WaitForAddresses().http;
  ASSERT_TRUE(Eventually([&] { return Serving(http) > 0; })) << model.Errors();

  // The coordinator is killed: what serves goes on, and its successor goes on handing out versions.
  kill(run.program().Children("millrace-ps").at(0), SIGKILL);
  const uint64_t before = Serving(http);
  EXPECT_GT(before, 0u);
  ASSERT_TRUE(Eventually([&] { return Serving(http) > before; })) << model.Errors();
  EXPECT_EQ(HttpFetch(http, "/readyz").status, 200);

  EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
  const uint64_t served = Serving(http);
  for (const char* file : {"model.pt", "config.pbtxt", "manifest.json"}) {
    const fs::path name = fs::path("mnist") / absl::StrCat(served) / file;
    EXPECT_TRUE(ContentsOf(mirror / name) == ContentsOf(temporary / "out/models" / name)) << name;
  }
  // The trainer is gone for good.
  ASSERT_TRUE(Eventually(
      [&] { return HttpFetch(http, "/metrics").body.find("millrace_model_source_up 0") != std::string::npos; }));
  EXPECT_EQ(HttpFetch(http, "/readyz").status, 200);
  EXPECT_THAT(HttpFetch(http, "/statusz").body, HasSubstr("source:      " + source + " ("));
  model.Signal(SIGTERM);
  EXPECT_EQ(model.Wait(), 0) << model.Errors();
}

TEST(VersionSourceTest, BadSourcesAreOneClearLine) {
  const TemporaryDirectory temporary;
  Program bad("millrace-model", {"--source", "grpc://nowhere", "--repository", temporary / "models"},
              temporary / "bad.stderr");
  EXPECT_EQ(bad.Wait(), 78);
  EXPECT_THAT(bad.Errors(), HasSubstr("--source: "));

  std::ofstream(temporary / "file") << "no directory";
  Program unwritable("millrace-model", {"--source", "127.0.0.1:1", "--repository", temporary / "file/models"},
                     temporary / "unwritable.stderr");
  EXPECT_NE(unwritable.Wait(), 0);
  EXPECT_THAT(unwritable.Errors(), HasSubstr((temporary / "file").string()));
}

}  // namespace
}  // namespace millrace
