#include "services/parameter_server/data_monitor.h"

#include <memory>
#include <string>

#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.grpc.pb.h"
#include "tests/testing/eventually.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using State = v1::DataReplicaStatus;

v1::DatasetIdentity Identity(const std::string& fingerprint) {
  v1::DatasetIdentity identity;
  identity.set_name("mnist");
  identity.set_fingerprint(fingerprint);
  return identity;
}

TEST(DataReplicaStatesTest, SaysHowEachIsAndForHowLong) {
  FakeClock clock;
  DataReplicaStates states({"a", "b"}, "f");
  EXPECT_TRUE(states.Update(0, Identity("f"), clock.Now()));
  EXPECT_TRUE(states.Update(1, absl::UnavailableError("refused"), clock.Now()));
  clock.Advance(absl::Seconds(3));
  EXPECT_FALSE(states.Update(0, Identity("f"), clock.Now()));
  EXPECT_FALSE(states.Update(1, absl::DeadlineExceededError("silent"), clock.Now()));
  auto report = states.Report(clock.Now());
  EXPECT_EQ(report[0].address(), "a");
  EXPECT_EQ(report[0].state(), State::STATE_UP);
  EXPECT_EQ(report[1].state(), State::STATE_DOWN);
  EXPECT_EQ(report[1].since_seconds(), 3);
  EXPECT_EQ(report[1].reason(), "silent") << "the newest";

  EXPECT_TRUE(states.Update(1, Identity("g"), clock.Now()));
  report = states.Report(clock.Now());
  EXPECT_EQ(report[1].state(), State::STATE_REFUSED);
  EXPECT_EQ(report[1].since_seconds(), 0);
  EXPECT_THAT(report[1].reason(), AllOf(HasSubstr("with fingerprint g"), HasSubstr("the job's has f")));
  EXPECT_TRUE(states.Update(1, Identity("f"), clock.Now()));
  EXPECT_EQ(states.Report(clock.Now())[1].reason(), "");
}

class FakeDataService : public v1::DataService::Service {
 public:
  explicit FakeDataService(std::string fingerprint) : fingerprint_(std::move(fingerprint)) {}

 private:
  grpc::Status IdentifyDataset(grpc::ServerContext*, const v1::IdentifyDatasetRequest*,
                               v1::DatasetIdentity* response) override {
    *response = Identity(fingerprint_);
    return grpc::Status::OK;
  }
  const std::string fingerprint_;
};

TEST(DataMonitorTest, TellsAndMeasuresWhatChanges) {
  const TemporaryDirectory directory;
  const std::string a = "unix:" + (directory / "a").string(), b = "unix:" + (directory / "b").string();
  FakeDataService service("f"), other("g");
  auto server = GrpcServer::Start({.address = a}, {&service}).value();
  Metrics metrics("test");
  Mutex mutex;
  std::vector<State> seen;
  DataMonitor monitor({.addresses = {a, b},
                       .fingerprint = "f",
                       .clock = &RealClock(),
                       .metrics = &metrics,
                       .interval = absl::Milliseconds(10)},
                      [&](std::vector<State> replicas) {
                        MutexLock lock(&mutex);
                        seen = std::move(replicas);
                      });
  const auto become = [&](State::State first, State::State second) {
    return Eventually([&] {
      MutexLock lock(&mutex);
      return !seen.empty() && seen[0].state() == first && seen[1].state() == second;
    });
  };
  EXPECT_TRUE(become(State::STATE_UP, State::STATE_DOWN));
  EXPECT_THAT(metrics.Render(), AllOf(HasSubstr("millrace_coordinator_data_replica_up{replica=\"" + a + "\"} 1\n"),
                                      HasSubstr("millrace_coordinator_data_replica_up{replica=\"" + b + "\"} 0\n")));
  const auto another = GrpcServer::Start({.address = b}, {&other}).value();
  EXPECT_TRUE(become(State::STATE_UP, State::STATE_REFUSED));
  EXPECT_THAT(metrics.Render(), HasSubstr("{replica=\"" + b + "\"} 0\n"));
  server.reset();
  EXPECT_TRUE(become(State::STATE_DOWN, State::STATE_REFUSED));
  EXPECT_THAT(metrics.Render(), HasSubstr("{replica=\"" + a + "\"} 0\n"));
}

}  // namespace
}  // namespace millrace
