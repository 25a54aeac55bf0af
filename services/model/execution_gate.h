// Bounds the work of a service whose handlers do it on their own threads: how many run, and how many wait.
#pragma once

#include <list>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace millrace {

// Up to `executors` permits are out at a time; further callers wait their turn, first come first served, as long as
// permits and waiters together are at most `in_flight_max`. Any thread.
class ExecutionGate {
 public:
  // Both at least 1.
  ExecutionGate(int executors, int in_flight_max);

  // The right to run, given back at the end of its life. Must not outlive the gate.
  class Permit {
   public:
    Permit(Permit&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Permit& operator=(Permit&&) = delete;
    ~Permit() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    friend class ExecutionGate;
    explicit Permit(ExecutionGate* gate) : gate_(gate) {}
    ExecutionGate* gate_;
  };

  // RESOURCE_EXHAUSTED at once if too many are in flight; DEADLINE_EXCEEDED if no permit came free within `wait_max`
  // (absl::InfiniteDuration() waits for ever).
  absl::StatusOr<Permit> Enter(absl::Duration wait_max);

  int in_flight() const;
  int executors() const { return executors_; }
  int in_flight_max() const { return in_flight_max_; }

 private:
  struct Waiter {
    CondVar granted_or_late;
    bool granted = false;
  };

  void Leave();

  const int executors_;
  const int in_flight_max_;
  mutable Mutex mutex_;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<Waiter*> waiting_ ABSL_GUARDED_BY(mutex_);  // oldest first; they live on their callers' stacks
};

}  // namespace millrace
