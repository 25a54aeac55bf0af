#include "common/shutdown.h"

#include <unistd.h>

#include <thread>

#include "gtest/gtest.h"

namespace millrace {
namespace {

// Signals go to this thread, not to the process: earlier tests may have left gRPC's threads, which do not block them.
// service_runtime_test sends them to a whole process.
TEST(ShutdownSignalsTest, WaitsForEitherSignal) {
  ShutdownSignals signals;
  for (const int signal : {SIGTERM, SIGINT}) {
    std::thread sender([signal, waiter = pthread_self()] { pthread_kill(waiter, signal); });
    EXPECT_EQ(signals.Wait(), signal);
    sender.join();
  }
}

TEST(ShutdownSignalsTest, ASignalBeforeTheWaitIsNotLost) {
  ShutdownSignals signals;
  raise(SIGTERM);
  EXPECT_EQ(signals.Wait(), SIGTERM);
}

TEST(ShutdownSignalsTest, TimeRunsOut) {
  ShutdownSignals signals;
  EXPECT_EQ(signals.WaitFor(absl::Milliseconds(1)), -1);
  EXPECT_EQ(signals.WaitFor(absl::ZeroDuration()), -1);
}

TEST(ShutdownSignalsTest, ARequestEndsThisAndEveryLaterWait) {
  ShutdownSignals signals;
  std::thread requester([&] { signals.Request(); });
  EXPECT_EQ(signals.Wait(), 0);
  requester.join();
  EXPECT_EQ(signals.Wait(), 0);
}

TEST(ShutdownSignalsTest, ABrokenPipeIsAnErrorCode) {
  ShutdownSignals signals;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  EXPECT_EQ(write(ends[1], "x", 1), -1);
  close(ends[1]);
}

TEST(ShutdownSignalsDeathTest, AnInterruptDuringTheDrainKills) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        signals.LetInterruptKill();
        kill(getpid(), SIGTERM);  // still caught
        kill(getpid(), SIGINT);
        sleep(10);
        _exit(0);
      },
      testing::KilledBySignal(SIGINT), "");
}

TEST(ShutdownSignalsTest, TheOldMaskComesBack) {
  sigset_t before, after;
  pthread_sigmask(SIG_BLOCK, nullptr, &before);
  { ShutdownSignals signals; }
  pthread_sigmask(SIG_BLOCK, nullptr, &after);
  EXPECT_EQ(sigismember(&before, SIGTERM), sigismember(&after, SIGTERM));
  EXPECT_EQ(sigismember(&before, SIGINT), sigismember(&after, SIGINT));
}

}  // namespace
}  // namespace millrace
