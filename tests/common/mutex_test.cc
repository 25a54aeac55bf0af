#include "common/mutex.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(MutexTest, CountsFromManyThreadsAddUp) {
  Mutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 10000; ++j) {
        MutexLock lock(&mutex);
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 40000);
}

TEST(CondVarTest, WaitReturnsHoldingTheMutexAfterASignal) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread other([&] {
    MutexLock lock(&mutex);
    ready = true;
    changed.Signal();
  });
  {
    MutexLock lock(&mutex);
    while (!ready) changed.Wait(&mutex);
  }
  other.join();
}

TEST(CondVarTest, SignalAllWakesEveryWaiterEvenWithAnInfiniteTimeout) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  int woken = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      MutexLock lock(&mutex);
      while (!ready) EXPECT_FALSE(changed.WaitWithTimeout(&mutex, absl::InfiniteDuration()));
      ++woken;
    });
  }
  {
    MutexLock lock(&mutex);
    ready = true;
    changed.SignalAll();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(woken, 3);
}

TEST(CondVarTest, GivesUpAfterTheTimeout) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  EXPECT_TRUE(never.WaitWithTimeout(&mutex, absl::Milliseconds(1)));
  EXPECT_TRUE(never.WaitWithTimeout(&mutex, absl::ZeroDuration()));
  EXPECT_TRUE(never.WaitWithTimeout(&mutex, -absl::InfiniteDuration()));
}

}  // namespace
}  // namespace millrace
