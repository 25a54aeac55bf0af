#include "services/model/execution_gate.h"

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

void WaitForInFlight(const ExecutionGate& gate, int count) {
  EXPECT_TRUE(Eventually([&] { return gate.in_flight() == count; }));
}

TEST(ExecutionGate, RefusesWhenFullAndAdmitsAgain) {
  ExecutionGate gate(1, 1);
  {
    const auto permit = gate.Enter(absl::InfiniteDuration());
    ASSERT_THAT(permit, IsOk());
    EXPECT_EQ(gate.in_flight(), 1);
    EXPECT_THAT(gate.Enter(absl::InfiniteDuration()), StatusIs(absl::StatusCode::kResourceExhausted));
  }
  EXPECT_EQ(gate.in_flight(), 0);
  EXPECT_THAT(gate.Enter(absl::InfiniteDuration()), IsOk());
}

TEST(ExecutionGate, WaitsNoLongerThanTheDeadline) {
  ExecutionGate gate(1, 2);
  const auto permit = gate.Enter(absl::InfiniteDuration());
  EXPECT_THAT(gate.Enter(absl::Milliseconds(5)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(gate.Enter(absl::ZeroDuration()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(gate.in_flight(), 1);
}

TEST(ExecutionGate, FirstComeFirstServed) {
  constexpr int kWaiters = 6;
  ExecutionGate gate(1, kWaiters + 1);
  std::optional<absl::StatusOr<ExecutionGate::Permit>> first(gate.Enter(absl::InfiniteDuration()));
  Mutex mutex;
  std::vector<int> order;
  std::vector<std::thread> threads;
  for (int i = 0; i < kWaiters; ++i) {
    threads.emplace_back([&, i] {
      const auto permit = gate.Enter(absl::InfiniteDuration());
      ASSERT_THAT(permit, IsOk());
      MutexLock lock(&mutex);
      order.push_back(i);
    });
    WaitForInFlight(gate, i + 2);
  }
  first.reset();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(gate.in_flight(), 0);
}

TEST(ExecutionGate, NeverMoreThanItsExecutorsAtOnce) {
  ExecutionGate gate(3, 64);
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        // Some give up, which must not lose permits.
        const auto permit = gate.Enter(i % 3 == 0 ? absl::Microseconds(20) : absl::InfiniteDuration());
        if (!permit.ok()) continue;
        const int now = ++running;
        int seen = most;
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        std::this_thread::yield();
        --running;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  EXPECT_EQ(gate.in_flight(), 0);
}

}  // namespace
}  // namespace millrace
