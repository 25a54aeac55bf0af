#include "common/thread_priority.h"

#include <sys/resource.h>

namespace millrace {
namespace {

constexpr int kNice = 10;

}  // namespace

// On Linux a priority belongs to a thread, and 0 is the calling one, whatever POSIX says of processes.
void LowerThreadPriority() { setpriority(PRIO_PROCESS, 0, kNice); }

}  // namespace millrace
