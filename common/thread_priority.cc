#include "common/thread_priority.h"

#include <sched.h>
#include <sys/resource.h>

#include <utility>

namespace millrace {
namespace {

constexpr int kNice = 10;

}  // namespace

// On Linux a priority belongs to a thread, and 0 is the calling one, whatever POSIX says of processes.
void LowerThreadPriority() { setpriority(PRIO_PROCESS, 0, kNice); }

void AvoidInterrupting(bool avoid) {
  thread_local bool avoids = false;
  if (std::exchange(avoids, avoid) == avoid) return;  // a system call the less
  const sched_param no_realtime = {};
  sched_setscheduler(0, avoid ? SCHED_BATCH : SCHED_OTHER, &no_realtime);
}

}  // namespace millrace
