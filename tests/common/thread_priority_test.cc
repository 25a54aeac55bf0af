#include "common/thread_priority.h"

#include <sched.h>
#include <sys/resource.h>

#include <thread>

#include "gtest/gtest.h"

namespace millrace {
namespace {

int Nice() { return getpriority(PRIO_PROCESS, 0); }

TEST(ThreadPriorityTest, LowersThatOfTheCallingThreadAlone) {
  const int before = Nice();
  int lowered = before;
  std::thread([&] {
    LowerThreadPriority();
    lowered = Nice();
  }).join();
  EXPECT_GT(lowered, before);
  EXPECT_EQ(Nice(), before);
}

TEST(ThreadPriorityTest, AvoidsInterruptingUntilToldOtherwise) {
  std::thread([] {
    AvoidInterrupting(true);
    EXPECT_EQ(sched_getscheduler(0), SCHED_BATCH);
    AvoidInterrupting(false);
    EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
    AvoidInterrupting(true);
    EXPECT_EQ(sched_getscheduler(0), SCHED_BATCH);
    std::thread([] {
      EXPECT_EQ(sched_getscheduler(0), SCHED_BATCH);
      AvoidInterrupting(false);
      EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
    }).join();
  }).join();
  EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
}

}  // namespace
}  // namespace millrace
