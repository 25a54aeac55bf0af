#include "common/command_line.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() : app_("A test.", "millrace-test") {
    app_.add_option("--data-dir", data_dir_);
    app_.add_option("--threads", threads_)->check(CLI::Range(1, 64));
    app_.add_flag("--resume", resume_);
    CLI::App* train = app_.add_subcommand("train");
    train->add_option("--batch-size", batch_size_);
  }
  ~CommandLineTest() override {
    for (const char* name : {"MILLRACE_DATA_DIR", "MILLRACE_THREADS", "MILLRACE_RESUME", "MILLRACE_BATCH_SIZE"}) {
      unsetenv(name);
    }
  }

  std::optional<int> Parse(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "/usr/bin/millrace-test");
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const auto code = ParseCommandLine(app_, static_cast<int>(arguments.size()), arguments.data());
    stdout_ = testing::internal::GetCapturedStdout();
    stderr_ = testing::internal::GetCapturedStderr();
    return code;
  }

  CLI::App app_;
  std::string data_dir_;
  int threads_ = 1;
  bool resume_ = false;
  int batch_size_ = 128;
  std::string stdout_, stderr_;
};

TEST_F(CommandLineTest, FlagsReachTheirVariables) {
  EXPECT_EQ(Parse({"--data-dir", "/d", "--threads=2", "--resume"}), std::nullopt);
  EXPECT_EQ(data_dir_, "/d");
  EXPECT_EQ(threads_, 2);
  EXPECT_TRUE(resume_);
  EXPECT_EQ(stdout_ + stderr_, "");
}

TEST_F(CommandLineTest, EnvironmentFillsInAndTheCommandLineWins) {
  setenv("MILLRACE_DATA_DIR", "/env", 1);
  setenv("MILLRACE_THREADS", "3", 1);
  setenv("MILLRACE_RESUME", "true", 1);
  EXPECT_EQ(Parse({"--threads", "4"}), std::nullopt);
  EXPECT_EQ(data_dir_, "/env");
  EXPECT_EQ(threads_, 4);
  EXPECT_TRUE(resume_);
}

TEST_F(CommandLineTest, EnvironmentReachesSubcommands) {
  setenv("MILLRACE_BATCH_SIZE", "256", 1);
  EXPECT_EQ(Parse({"train"}), std::nullopt);
  EXPECT_EQ(batch_size_, 256);
}

TEST_F(CommandLineTest, AnEmptyVariableIsUnset) {
  setenv("MILLRACE_THREADS", "", 1);
  EXPECT_EQ(Parse({}), std::nullopt);
  EXPECT_EQ(threads_, 1);
}

TEST_F(CommandLineTest, FaultsAreOneLineAndExit64) {
  setenv("MILLRACE_THREADS", "many", 1);
  const std::vector<std::pair<std::vector<const char*>, std::string>> cases = {
      {{"--threads", "1", "--no-such-flag"}, "--no-such-flag"},
      {{"--threads", "x"}, "--threads"},
      {{"--threads", "65"}, "--threads"},
      {{"--threads"}, "--threads"},
      {{}, "--threads"},  // from the environment
      {{"--threads", "1", "stray"}, "stray"},
  };
  for (const auto& [arguments, named] : cases) {
    EXPECT_EQ(Parse(arguments), kExitUsage);
    EXPECT_THAT(stderr_, AllOf(StartsWith("millrace-test: "), HasSubstr(named), HasSubstr("--help")));
    EXPECT_EQ(std::count(stderr_.begin(), stderr_.end(), '\n'), 1) << stderr_;
    EXPECT_EQ(stdout_, "");
  }
}

TEST_F(CommandLineTest, HelpAndVersionGoToStdoutAndExit0) {
  EXPECT_EQ(Parse({"--help"}), kExitOk);
  EXPECT_THAT(stdout_, AllOf(HasSubstr("--data-dir"), HasSubstr("MILLRACE_DATA_DIR")));
  EXPECT_EQ(Parse({"--version"}), kExitOk);
  EXPECT_EQ(stdout_, "millrace-test " + std::string(Version()) + "\n");
  EXPECT_EQ(stderr_, "");
}

TEST(ExitCodeTest, SeparatesTheUsersMistakesFromFailures) {
  EXPECT_EQ(ExitCodeFor(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeFor(absl::NotFoundError("")), 78);
  EXPECT_EQ(ExitCodeFor(absl::InvalidArgumentError("")), 78);
  EXPECT_EQ(ExitCodeFor(absl::DataLossError("")), 78);
  EXPECT_EQ(ExitCodeFor(absl::PermissionDeniedError("")), 78);
  EXPECT_EQ(ExitCodeFor(absl::AlreadyExistsError("")), 1);
  EXPECT_EQ(ExitCodeFor(absl::ResourceExhaustedError("")), 1);
  EXPECT_EQ(ExitCodeFor(absl::UnavailableError("")), 1);
  EXPECT_EQ(ExitCodeFor(absl::InternalError("")), 1);
}

}  // namespace
}  // namespace millrace
