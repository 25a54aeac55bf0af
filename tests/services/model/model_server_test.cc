#include "services/model/model_server.h"

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/fake_source.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelServerTest : public ::testing::Test {
 protected:
  ModelServer::Options Options() {
    return {.repository = root_ / "models",
            .poll_interval = absl::Milliseconds(1),
            .limits = {.executors = 1, .requests = 4},
            .drain_delay = absl::ZeroDuration()};
  }
  absl::StatusOr<std::unique_ptr<ModelServer>> Create(const ModelServer::Options& options) {
    return ModelServer::Create(options, FakeLoader(), metrics_, RealClock());
  }

  const TemporaryDirectory root_;
  Metrics metrics_{"test"};
};

TEST_F(ModelServerTest, ReadyFromTheFirstGoodVersionUntilTheDrain) {
  auto server = *Create(Options());
  const auto says = [&](const std::string& text) {
    return Eventually([&] { return server->StatusPage().find(text) != std::string::npos; });
  };
  const auto says_while_ready = [&](const std::string& text) {
    return Eventually([&] {
      EXPECT_THAT(server->Ready(), IsOk());
      return server->StatusPage().find(text) != std::string::npos;
    });
  };
  ASSERT_THAT(server->Started({}), IsOk());
  EXPECT_THAT(server->Ready(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(server->HealthNames().empty());
  PublishFake(root_ / "models", "mnist", 1, "bad");
  ASSERT_TRUE(says("REFUSED"));
  EXPECT_THAT(server->Ready(), StatusIs(absl::StatusCode::kUnavailable));
  PublishFake(root_ / "models", "mnist", 2);
  ASSERT_TRUE(Eventually([&] { return server->Ready().ok(); }));
  EXPECT_THAT(server->HealthNames(), ElementsAre("mnist"));

  // Neither a bad push, nor a good one, nor lost storage makes it unready.
  PublishFake(root_ / "models", "mnist", 3, "bad");
  ASSERT_TRUE(says_while_ready("3 REFUSED"));
  PublishFake(root_ / "models", "mnist", 4);
  ASSERT_TRUE(says_while_ready("4 SERVING"));
  std::filesystem::rename(root_ / "models", root_ / "away");
  ASSERT_TRUE(says_while_ready("does not exist"));

  server->Drain(absl::Seconds(1));
  EXPECT_THAT(server->Ready(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
}

TEST_F(ModelServerTest, AVersionThatIsPinnedFromTheStartIsWaitedFor) {
  ModelServer::Options options = Options();
  options.pins = {"mnist=2"};
  auto server = *Create(options);
  const auto says = [&](const std::string& text) {
    return Eventually([&] { return server->StatusPage().find(text) != std::string::npos; });
  };
  EXPECT_THAT(server->Ready(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("version 2 of model mnist is pinned")));
  PublishFake(root_ / "models", "mnist", 1);
  PublishFake(root_ / "models", "mnist", 3);
  PublishFake(root_ / "models", "other", 1);
  ASSERT_THAT(server->Started({}), IsOk());
  ASSERT_TRUE(Eventually([&] { return !server->HealthNames().empty(); }));
  EXPECT_THAT(server->HealthNames(), ElementsAre("other"));
  EXPECT_TRUE(says("2 LOADING PINNED")) << server->StatusPage();
  EXPECT_TRUE(says("not loaded yet"));
  PublishFake(root_ / "models", "mnist", 2);
  ASSERT_TRUE(says("2 SERVING PINNED"));
  server->Drain(absl::ZeroDuration());
}

TEST_F(ModelServerTest, ASourceFillsTheRepositoryWithAllThatIsToBeLoaded) {
  FakeSource source;
  for (const uint64_t version : {10, 20, 30, 40, 50, 60}) source->Publish(version, absl::StrCat("number ", version));
  const auto grpc = *GrpcServer::Start({.address = "unix:" + (root_ / "source").string()}, {&source});
  ModelServer::Options options = Options();
  options.source = grpc->address();
  options.standby_versions = 3;
  options.pins = {"mnist=10"};
  auto server = *Create(options);
  ASSERT_THAT(server->Started({}), IsOk());
  const auto there = [&] { return NumberedEntries(root_ / "models/mnist"); };
  EXPECT_TRUE(Eventually([&] { return there() == std::vector<uint64_t>{60, 50, 40, 30, 10}; }));
  EXPECT_TRUE(Eventually([&] { return server->Ready().ok(); }));
  EXPECT_THAT(server->StatusPage(), HasSubstr("10 SERVING PINNED"));
  server->Drain(absl::ZeroDuration());
}

TEST_F(ModelServerTest, ImpossibleOptionsAreRefused) {
  std::ofstream(root_ / "file") << "x";
  ModelServer::Options options = Options();
  options.repository = root_ / "file";
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is not a directory")));
  options = Options();
  options.repository.clear();
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--repository")));
  options = Options();
  options.poll_interval = absl::ZeroDuration();
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--poll-interval-ms")));
  options = Options();
  options.limits.requests = 0;
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--max-in-flight")));
  options = Options();
  options.limits.batch_rows = 0;
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--max-batch-rows")));
  options = Options();
  options.drain_delay = -absl::Seconds(1);
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--drain-seconds")));
  for (const char* pin : {"mnist", "mnist=", "=1", "mnist=0", "mnist=newest", "../mnist=1"}) {
    options = Options();
    options.pins = {pin};
    EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--pin"))) << pin;
  }
  options.pins = {"mnist=1", "mnist=2"};
  EXPECT_THAT(Create(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("twice")));
}

}  // namespace
}  // namespace millrace
