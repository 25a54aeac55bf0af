#include "common/mutex.h"

namespace millrace {

// The mutex is lent to a std::unique_lock for the length of the wait, which the analysis cannot follow.
void CondVar::Wait(Mutex* mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
  condition_.wait(lock);
  lock.release();
}

bool CondVar::WaitWithTimeout(Mutex* mutex, absl::Duration timeout) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  // Longer waits would overflow the deadline; nobody notices the difference.
  constexpr absl::Duration kForever = absl::Hours(24 * 365);
  if (timeout > kForever) {
    Wait(mutex);
    return false;
  }
  std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
  const std::cv_status status = condition_.wait_for(lock, absl::ToChronoNanoseconds(timeout));
  lock.release();
  return status == std::cv_status::timeout;
}

}  // namespace millrace
