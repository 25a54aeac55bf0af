// How much the REST protocols compute at once, and the wait for it.
#pragma once

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace millrace {

// Any thread. Places are fewer than the HTTP server has threads, so that it can always be asked how it does.
class RestAdmission {
 public:
  static constexpr int kPredictionsMax = 28;                     // at once, explanations among them
  static constexpr absl::Duration kWaitMax = absl::Seconds(10);  // of one

  // A request's, until it is destroyed. Must not outlive the admission.
  class Place {
   public:
    explicit Place(RestAdmission& admission) : admission_(&admission) {}
    Place(Place&& other) noexcept : admission_(std::exchange(other.admission_, nullptr)) {}
    Place& operator=(Place&&) = delete;
    ~Place() {
      if (admission_ != nullptr) admission_->Leave();
    }

   private:
    RestAdmission* admission_;
  };

  // RESOURCE_EXHAUSTED names the limit and has a retry hint.
  absl::StatusOr<Place> Admit();

 private:
  void Leave();

  Mutex mutex_;
  int predictions_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Blocks until the callback that `start` is given has been called, once, on any thread.
template <typename Answer, typename Start>
absl::StatusOr<Answer> WaitForAnswer(const Start& start) {
  Mutex mutex;
  CondVar answered;
  std::optional<absl::StatusOr<Answer>> answer;
  start([&](absl::StatusOr<Answer> result) {
    MutexLock lock(&mutex);  // until after the signal: then this function may return
    answer = std::move(result);
    answered.Signal();
  });
  MutexLock lock(&mutex);
  while (!answer) answered.Wait(&mutex);
  return *std::move(answer);
}

}  // namespace millrace
