#include "services/cli/service_process.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class ServiceProcessTest : public testing::Test {
 protected:
  std::unique_ptr<ServiceProcess> Shell(const std::string& script) {
    auto child = ServiceProcess::Start({"/bin/sh", "-c", script}, log_);
    EXPECT_THAT(child, IsOk());
    return *std::move(child);
  }

  TemporaryDirectory directory_;
  const std::string log_ = (directory_ / "log").string();
};

TEST(ParseAnnouncementTest, ReadsAddresses) {
  const auto both = ParseAnnouncement("LISTENING grpc=unix:/a b=1 http=127.0.0.1:80");
  ASSERT_TRUE(both.has_value());
  EXPECT_EQ(both->grpc, "unix:/a");
  EXPECT_EQ(both->http, "127.0.0.1:80");
  EXPECT_EQ(ParseAnnouncement("LISTENING grpc=- http=h:1")->grpc, "");
  EXPECT_FALSE(ParseAnnouncement("listening grpc=a").has_value());
  EXPECT_FALSE(ParseAnnouncement("").has_value());
}

TEST_F(ServiceProcessTest, TakesTheAnnouncementAlsoInPieces) {
  auto child = Shell("echo hello; printf 'LISTENING grpc=u'; sleep 0.05; echo 'nix:/s http=-'; exec sleep 60");
  ASSERT_TRUE(Eventually([&] { return child->Poll() && child->announced().has_value(); }));
  EXPECT_EQ(child->announced()->grpc, "unix:/s");
  EXPECT_EQ(child->announced()->http, "");
}

TEST_F(ServiceProcessTest, TellsHowItEnded) {
  auto exits = Shell("echo one >&2; echo two >&2; exit 78");
  ASSERT_TRUE(Eventually([&] { return !exits->Poll(); }));
  EXPECT_EQ(exits->exit_code(), 78);
  EXPECT_EQ(exits->DescribeEnd(), "exited with code 78");
  EXPECT_EQ(LastLines(log_, 1), "two");
  EXPECT_EQ(LastLines(log_, 5), "one\ntwo");

  auto killed = Shell("exec sleep 60");
  killed->Signal(SIGKILL);
  ASSERT_TRUE(Eventually([&] { return !killed->Poll(); }));
  EXPECT_EQ(killed->exit_code(), 128 + SIGKILL);
  EXPECT_EQ(killed->DescribeEnd(), "was killed by signal 9 (Killed)");
  EXPECT_EQ(LastLines(log_, 1), "two") << "a log is appended to";
}

TEST_F(ServiceProcessTest, InheritsNoInputNoFlagsNoDescriptorsAndNoBlockedSignals) {
  setenv("MILLRACE_SEED", "7", 1);
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, nullptr);
  const int leaked = dup(0);
  auto child = Shell(
      "cat; env | grep MILLRACE_ >&2; ls /proc/self/fd | wc -l >&2; echo pgid $(ps -o pgid= $$) >&2;"
      "echo LISTENING; exec sleep 60");
  pthread_sigmask(SIG_UNBLOCK, &term, nullptr);
  close(leaked);
  unsetenv("MILLRACE_SEED");
  ASSERT_TRUE(Eventually([&] { return child->Poll() && !LastLines(log_, 1).empty(); }));
  child->Signal(SIGTERM);
  ASSERT_TRUE(Eventually([&] { return !child->Poll(); }));
  EXPECT_EQ(child->exit_code(), 128 + SIGTERM);
  EXPECT_THAT(LastLines(log_, 9), testing::Not(HasSubstr("MILLRACE_SEED")));
  EXPECT_THAT(LastLines(log_, 9), HasSubstr("4")) << "0, 1, 2 and ls's own";
}

TEST_F(ServiceProcessTest, AMissingProgramIsAnError) {
  EXPECT_THAT(ServiceProcess::Start({"/no/such/program"}, log_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/program")));
}

TEST_F(ServiceProcessTest, ALogThatCannotBeWrittenIsAnErrorThatNamesIt) {
  const std::string log = (directory_ / "absent" / "log").string();
  EXPECT_THAT(ServiceProcess::Start({"/bin/true"}, log), StatusIs(absl::StatusCode::kNotFound, HasSubstr(log)));
}

TEST_F(ServiceProcessTest, IsKilledWithTheObject) {
  pid_t pid;
  {
    auto child = Shell("trap '' TERM; while :; do sleep 1; done");
    pid = child->pid();
  }
  EXPECT_EQ(kill(pid, 0), -1);
}

}  // namespace
}  // namespace millrace
