// What a worker is doing and waiting for, in one line each: written by the step loop, read by heartbeats and /statusz.
#pragma once

#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace millrace {

// Any thread.
class Activity {
 public:
  explicit Activity(const Clock* clock) : clock_(*clock), since_(clock_.Now()) {}

  // Computing: nothing is waited for.
  void Doing(std::string what) {
    MutexLock lock(&mutex_);
    doing_ = std::move(what);
    waiting_for_.clear();
    since_ = clock_.Now();
  }

  // Waiting. Repeating the same line keeps the time at which the wait began.
  void WaitingFor(std::string_view what) {
    MutexLock lock(&mutex_);
    if (waiting_for_ == what) return;
    waiting_for_ = what;
    since_ = clock_.Now();
  }

  // Empty while computing.
  std::string waiting_for() const {
    MutexLock lock(&mutex_);
    return waiting_for_;
  }

  // "computing slots [0, 2) of step 812", or "waiting for weights 813 from shard 0, 1.2 s"
  std::string Describe() const;

 private:
  const Clock& clock_;
  mutable Mutex mutex_;
  std::string doing_ ABSL_GUARDED_BY(mutex_) = "starting";
  std::string waiting_for_ ABSL_GUARDED_BY(mutex_);
  absl::Time since_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
