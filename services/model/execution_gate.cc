#include "services/model/execution_gate.h"

#include <chrono>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace millrace {

ExecutionGate::ExecutionGate(int executors, int in_flight_max) : executors_(executors), in_flight_max_(in_flight_max) {}

absl::StatusOr<ExecutionGate::Permit> ExecutionGate::Enter(absl::Duration wait_max) {
  MutexLock lock(&mutex_);
  if (running_ < executors_) {  // then nobody waits: Leave hands permits on
    ++running_;
    return Permit(this);
  }
  if (running_ + static_cast<int>(waiting_.size()) >= in_flight_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", in_flight_max_, " places for requests in flight are taken; try again, or elsewhere"));
  }
  Waiter self;
  const auto place = waiting_.insert(waiting_.end(), &self);
  const auto start = std::chrono::steady_clock::now();
  while (!self.granted) {
    const absl::Duration left = wait_max - absl::FromChrono(std::chrono::steady_clock::now() - start);
    if (self.granted_or_late.WaitWithTimeout(&mutex_, left) && !self.granted) {
      waiting_.erase(place);
      return absl::DeadlineExceededError("the deadline passed while the request waited for an executor");
    }
  }
  return Permit(this);
}

void ExecutionGate::Leave() {
  MutexLock lock(&mutex_);
  if (waiting_.empty()) {
    --running_;
    return;
  }
  // The permit passes on, so that a newcomer cannot overtake.
  Waiter* next = waiting_.front();
  waiting_.pop_front();
  next->granted = true;
  next->granted_or_late.Signal();
}

int ExecutionGate::in_flight() const {
  MutexLock lock(&mutex_);
  return running_ + static_cast<int>(waiting_.size());
}

}  // namespace millrace
