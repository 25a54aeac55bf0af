#include "common/thread_priority.h"

#include <sched.h>
#include <sys/resource.h>

namespace millrace {
namespace {

constexpr int kNice = 10;

}  // namespace

// On Linux a priority belongs to a thread, and 0 is the calling one, whatever POSIX says of processes.
void LowerThreadPriority() { setpriority(PRIO_PROCESS, 0, kNice); }

void AvoidInterrupting(bool avoid) {
  thread_local int policy = sched_getscheduler(0);  // perhaps that of the thread which started this one
  const int wanted = avoid ? SCHED_BATCH : SCHED_OTHER;
  if (policy == wanted || (policy != SCHED_BATCH && policy != SCHED_OTHER)) return;
  const sched_param no_realtime = {};
  if (sched_setscheduler(0, wanted, &no_realtime) == 0) policy = wanted;
}

}  // namespace millrace
