#include "services/data/data_server.h"

#include <memory>
#include <string>

#include "common/command_line.h"
#include "common/shutdown.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/eventually.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DataServerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Service>> Create(const std::filesystem::path& data_dir) {
    return DataServer::Create({.data_dir = data_dir.string()}, context_);
  }

  ShutdownSignals signals_;
  Metrics metrics_{"data_server_test"};
  ServiceContext context_{metrics_, signals_};
  const TemporaryDirectory directory_;
};

TEST_F(DataServerTest, MissingDirectoryIsToldBeforeAnythingListens) {
  const auto server = Create(directory_ / "none");
  EXPECT_THAT(server, StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_EQ(ExitCodeFor(server.status()), kExitBadConfiguration);
  EXPECT_EQ(ExitCodeFor(Create(directory_.path()).status()), kExitBadConfiguration);
}

TEST_F(DataServerTest, IsReadyOnceTheDatasetIsLoaded) {
  TinyDataset{}.Write(directory_.path());
  auto server = Create(directory_.path());
  ASSERT_THAT(server, IsOk());
  EXPECT_THAT((*server)->Ready(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(directory_.path().string())));
  EXPECT_THAT((*server)->StatusPage(), HasSubstr("being loaded"));
  ASSERT_THAT((*server)->Started({}), IsOk());
  EXPECT_TRUE(Eventually([&] { return (*server)->Ready().ok(); }));
  EXPECT_THAT((*server)->StatusPage(), AllOf(HasSubstr("train files: 100 samples"), HasSubstr("4 x 4 pixels")));
}

TEST_F(DataServerTest, DamagedFileEndsTheProcess) {
  TinyDataset{}.Write(directory_.path());
  WriteBytes(directory_ / "t10k-images-idx3-ubyte", "<html>");
  auto server = Create(directory_.path());
  ASSERT_THAT(server, IsOk());
  ASSERT_THAT((*server)->Started({}), IsOk());
  EXPECT_EQ(signals_.WaitFor(absl::Seconds(30)), 0);
  EXPECT_THAT(context_.stop_reason(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("t10k-images-idx3-ubyte")));
  EXPECT_EQ(ExitCodeFor(context_.stop_reason()), kExitBadConfiguration);
  EXPECT_FALSE((*server)->Ready().ok());
}

}  // namespace
}  // namespace millrace
