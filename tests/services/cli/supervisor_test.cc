#include "services/cli/supervisor.h"

#include <signal.h>
#include <unistd.h>

#include "common/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/service_process.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using Replace = Supervisor::Replace;

constexpr absl::Duration kTick = absl::Milliseconds(10);
constexpr int kTicksMax = 2000;

// Parts are shell scripts; the flags that the supervisor appends become the script's arguments.
class SupervisorTest : public testing::Test {
 protected:
  absl::Status Start(const std::string& name, const std::string& script, Replace replace) {
    return supervisor_.Start({.name = name,
                              .command = {"/bin/sh", "-c", script},
                              .log_file = (directory_ / name).string(),
                              .replace = replace});
  }

  // Until `condition` or an error, whichever is first.
  absl::Status PollUntil(const std::function<bool()>& condition) {
    for (int tick = 0; tick < kTicksMax; ++tick) {
      if (condition()) return absl::OkStatus();
      if (absl::Status status = supervisor_.Poll(kTick); !status.ok()) return status;
    }
    return absl::DeadlineExceededError("the condition never came true");
  }
  absl::Status PollUntilError() {
    return PollUntil([] { return false; });
  }
  bool Listens(const std::string& name) { return supervisor_.announced(name) != nullptr; }
  // Of a part that announces its process number instead of an address.
  pid_t Pid(const std::string& name) { return std::stoi(supervisor_.announced(name)->grpc); }

  TemporaryDirectory directory_;
  ShutdownSignals signals_;
  std::vector<std::string> notices_;
  Supervisor supervisor_{RealClock(), signals_, [this](const std::string& notice) { notices_.push_back(notice); }};
};

TEST_F(SupervisorTest, StartsAKilledPartAgainWithinTwoSeconds) {
  ASSERT_THAT(Start("worker-0", "echo LISTENING grpc=$$ http=h:1; exec sleep 60", Replace::kAlways), IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("worker-0"); }), IsOk());
  const pid_t first = Pid("worker-0");
  const absl::Time killed = RealClock().Now();
  kill(first, SIGKILL);
  ASSERT_THAT(PollUntil([&] { return Listens("worker-0") && Pid("worker-0") != first; }), IsOk());
  EXPECT_LT(RealClock().Now() - killed, absl::Seconds(2));
  ASSERT_THAT(notices_, SizeIs(1));
  EXPECT_THAT(notices_[0], HasSubstr("was killed by signal 9"));
}

TEST_F(SupervisorTest, AReplacementIsToldThatItIsOne) {
  ASSERT_THAT(supervisor_.Start({.name = "ps",
                                 .command = {"/bin/sh", "-c", "echo LISTENING grpc=$$ http=$0; exec sleep 60"},
                                 .log_file = (directory_ / "ps").string(),
                                 .replace = Replace::kOnceReady,
                                 .flags_when_replaced = {"--resume"}}),
              IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("ps"); }), IsOk());
  EXPECT_EQ(supervisor_.announced("ps")->http, "--parent-pid");
  const pid_t first = Pid("ps");
  kill(first, SIGKILL);
  ASSERT_THAT(PollUntil([&] { return Listens("ps") && Pid("ps") != first; }), IsOk());
  EXPECT_EQ(supervisor_.announced("ps")->http, "--resume");
}

TEST_F(SupervisorTest, AServerThatWasToldToEndIsStartedAgainAtOnce) {
  ASSERT_THAT(Start("ps", "trap 'exit 0' TERM; echo LISTENING grpc=$$ http=-; while :; do sleep 0.02; done",
                    Replace::kOnceReady),
              IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("ps"); }), IsOk());
  const pid_t first = Pid("ps");
  const absl::Time ended = RealClock().Now();
  kill(first, SIGTERM);
  ASSERT_THAT(PollUntil([&] { return Listens("ps") && Pid("ps") != first; }), IsOk());
  EXPECT_LT(RealClock().Now() - ended, absl::Milliseconds(1500));
  ASSERT_THAT(notices_, SizeIs(1));
  EXPECT_THAT(notices_[0], HasSubstr("exited with code 0; starting it again"));
}

TEST_F(SupervisorTest, GivesUpAPartThatDiesAtItsStartAndShowsItsLog) {
  ASSERT_THAT(Start("worker-0", "echo out of luck >&2; exit 1", Replace::kAlways), IsOk());
  EXPECT_THAT(PollUntilError(), StatusIs(absl::StatusCode::kAborted,
                                         testing::AllOf(HasSubstr("5 times in a row"), HasSubstr("out of luck"))));
  EXPECT_THAT(notices_, SizeIs(4));
}

TEST_F(SupervisorTest, ABlamedConfigurationIsFinal) {
  ASSERT_THAT(Start("data",
                    "echo LISTENING grpc=- http=-; echo '2026-01-31T12:00:00.123Z E millrace-data: no images "
                    "code=NOT_FOUND' >&2; exit 78",
                    Replace::kOnceReady),
              IsOk());
  const absl::Status status = PollUntilError();
  EXPECT_EQ(status.message(), "data: no images");
  EXPECT_EQ(ExitCodeFor(status), kExitBadConfiguration);
}

TEST_F(SupervisorTest, APartWhoseWorkOthersDoIsGivenUpAlone) {
  // Well once, until it is killed; then it dies at its start.
  const auto part = [this](const std::string& name, const std::string& group) {
    const std::string again = (directory_ / (name + ".again")).string();
    return Supervisor::Part{.name = name,
                            .command = {"/bin/sh", "-c",
                                        "test -e " + again + " && { echo 'no luck' >&2; exit 1; }; > " + again +
                                            "; echo LISTENING grpc=$$ http=-; exec sleep 60"},
                            .log_file = (directory_ / name).string(),
                            .replace = Replace::kOnceReady,
                            .group = group};
  };
  ASSERT_THAT(supervisor_.Start(part("data", "data")), IsOk());
  ASSERT_THAT(supervisor_.Start(part("data-1", "data")), IsOk());
  ASSERT_THAT(supervisor_.Start(part("other", "")), IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("data") && Listens("data-1") && Listens("other"); }), IsOk());
  kill(Pid("data-1"), SIGKILL);
  ASSERT_THAT(PollUntil([&] { return !notices_.empty() && notices_.back().find("no luck") != std::string::npos; }),
              IsOk());
  EXPECT_THAT(notices_.back(), HasSubstr("data-1 is not started again: others do its work"));
  ASSERT_TRUE(Listens("data") && !Listens("data-1"));
  // The last one of its group is as any other part.
  kill(Pid("data"), SIGKILL);
  EXPECT_THAT(PollUntilError(), StatusIs(absl::StatusCode::kAborted, HasSubstr("no luck")));
}

TEST_F(SupervisorTest, AFailureAtTheFirstStartIsFinalForServersOnly) {
  ASSERT_THAT(Start("model", "echo port in use >&2; exit 1", Replace::kOnceReady), IsOk());
  const absl::Status status = PollUntilError();
  EXPECT_THAT(status.message(), HasSubstr("exited with code 1: port in use"));
  EXPECT_EQ(ExitCodeFor(status), kExitFailure);
}

TEST_F(SupervisorTest, DeathOfAnIrreplaceablePartIsAnError) {
  ASSERT_THAT(Start("part", "echo LISTENING grpc=$$ http=-; exec sleep 60", Replace::kNever), IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("part"); }), IsOk());
  kill(Pid("part"), SIGKILL);
  EXPECT_THAT(PollUntilError(), StatusIs(absl::StatusCode::kAborted, HasSubstr("part (process")));
}

TEST_F(SupervisorTest, ASignalIsCancelled) {
  raise(SIGTERM);  // to this thread: others of the test program may not block it
  EXPECT_THAT(supervisor_.Poll(absl::Seconds(20)), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(SupervisorTest, StopKillsWhatDoesNotLeave) {
  ASSERT_THAT(
      Start("stubborn", "trap '' TERM; echo LISTENING grpc=$$ http=-; while :; do sleep 0.1; done", Replace::kAlways),
      IsOk());
  ASSERT_THAT(Start("polite", "echo LISTENING grpc=$$ http=-; exec sleep 60", Replace::kAlways), IsOk());
  ASSERT_THAT(Start("other", "echo LISTENING grpc=$$ http=-; exec sleep 60", Replace::kAlways), IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("stubborn") && Listens("polite") && Listens("other"); }), IsOk());
  const pid_t stubborn = Pid("stubborn");
  const pid_t polite = Pid("polite");
  supervisor_.Stop({"stubborn", "polite", "no such part"}, absl::Milliseconds(200));
  EXPECT_EQ(kill(stubborn, 0), -1);
  EXPECT_EQ(kill(polite, 0), -1);
  EXPECT_THAT(supervisor_.names(), testing::ElementsAre("other"));
  EXPECT_EQ(kill(Pid("other"), 0), 0);
}

TEST_F(SupervisorTest, ChildrenAreToldTheirParent) {
  ASSERT_THAT(Start("data", "echo LISTENING grpc=$0,$1; exec sleep 60", Replace::kAlways), IsOk());
  ASSERT_THAT(PollUntil([&] { return Listens("data"); }), IsOk());
  EXPECT_EQ(supervisor_.announced("data")->grpc, "--parent-pid," + std::to_string(getpid()));
}

}  // namespace
}  // namespace millrace
