// Each service by itself, as an operator meets it: its pages, its metrics, and its end.
#include <signal.h>

#include <ostream>
#include <string>
#include <vector>

#include "common/grpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/output_directory.h"
#include "services/cli/train_options.h"
#include "tests/integration/cluster_process.h"
#include "tests/integration/idx_dataset.h"
#include "tests/testing/eventually.h"
#include "tests/testing/http_fetch.h"
#include "tests/testing/raw_stream.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

struct ServiceCase {
  std::string program;
  std::vector<std::string> flags;  // "DIR" stands for a directory of the test's own
  int ready;                       // what /readyz says of a service whose peers are not there
};

void PrintTo(const ServiceCase& service, std::ostream* stream) { *stream << service.program; }

class ServicesTest : public testing::TestWithParam<ServiceCase> {
 protected:
  ServicesTest() {
    WriteIdxDataset(temporary_ / "data", {.train_count = 20, .test_count = 10});
    std::filesystem::create_directories(temporary_ / "models");
    EXPECT_THAT(OutputDirectory::Open(temporary_ / "out", "", false)->WriteJob(*MakeJobSpec({}, nullptr, 60'000)),
                IsOk());
  }

  std::vector<std::string> Arguments() const {
    std::vector<std::string> arguments = GetParam().flags;
    for (std::string& argument : arguments) {
      if (const size_t at = argument.find("DIR"); at != std::string::npos) {
        argument.replace(at, 3, temporary_.path().string());
      }
    }
    arguments.insert(arguments.end(), {"--http-listen", "127.0.0.1:0"});
    return arguments;
  }

  TemporaryDirectory temporary_;
};

TEST_P(ServicesTest, AnswersOnEveryPageAndEndsCleanly) {
  Program service(GetParam().program, Arguments(), temporary_ / "stderr");
  const AnnouncedAddresses addresses = service.WaitForAddresses();

  EXPECT_EQ(HttpFetch(addresses.http, "/healthz").status, 200);
  EXPECT_TRUE(Eventually([&] { return HttpFetch(addresses.http, "/readyz").status == GetParam().ready; }));
  const HttpReply page = HttpFetch(addresses.http, "/statusz");
  EXPECT_EQ(page.status, 200);
  EXPECT_FALSE(page.body.empty());

  if (!addresses.grpc.empty()) {
    RawStream health(MakeChannel(addresses.grpc), "/grpc.health.v1.Health/Check");
    health.Write("");
    health.WritesDone();
    EXPECT_TRUE(health.Read().has_value());
    // Counted when the call is over, which may be a moment after its answer.
    EXPECT_TRUE(Eventually([&] {
      return HttpFetch(addresses.http, "/metrics").body.find("grpc_server_handled_total{") != std::string::npos;
    }));
  }
  const std::string metrics = HttpFetch(addresses.http, "/metrics").body;
  for (const char* name : {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
                           "process_start_time_seconds", "millrace_build_info"}) {
    EXPECT_THAT(metrics, HasSubstr(std::string("# TYPE ") + name)) << name;
  }

  service.Signal(SIGTERM);
  EXPECT_EQ(service.Wait(absl::Seconds(20)), 0) << service.Errors();
}

INSTANTIATE_TEST_SUITE_P(
    All, ServicesTest,
    testing::Values(ServiceCase{"millrace-data", {"--data-dir", "DIR/data", "--listen", "127.0.0.1:0"}, 200},
                    ServiceCase{"millrace-ps",
                                {"--shard", "0", "--num-shards", "1", "--job", "DIR/out/job.textproto", "--data",
                                 "unix:DIR/nobody", "--output", "DIR/out", "--listen", "127.0.0.1:0"},
                                503},
                    ServiceCase{"millrace-worker", {"--coordinator", "unix:DIR/nobody", "--name", "worker-0"}, 503},
                    ServiceCase{"millrace-model", {"--repository", "DIR/models", "--listen", "127.0.0.1:0"}, 503}),
    [](const auto& info) { return info.param.program.substr(std::string("millrace-").size()); });

}  // namespace
}  // namespace millrace
