// Where requests meet the processors: the threads and the clock around the batcher.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "services/model/batch_job.h"
#include "services/model/batcher.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"

namespace millrace {

// A request that finds nothing else under way is computed on its caller's thread: a hand-over takes a good part of the
// time of a small forward pass. All others are computed by the engine's own threads, one per executor, which leaves the
// callers free to bring more; so is one that comes on the heels of the last answer, for then more are behind it,
// unread. A thread whose request is refused no longer interrupts the executors when it has more to read, until one of
// them is free again: refusing costs less so, and leaves more of the processors for what is admitted.
//
// Threads: any. Infer, Cancel and the callbacks may run at once.
class InferenceEngine {
 public:
  using Ticket = uint64_t;

  // The clock must outlive the engine.
  InferenceEngine(const Batcher::Limits& limits, const Clock& clock);
  // Waits for what runs; what waits is UNAVAILABLE.
  ~InferenceEngine();
  InferenceEngine(const InferenceEngine&) = delete;
  InferenceEngine& operator=(const InferenceEngine&) = delete;

  // Called for every request before its answer is given, on the thread that gives it: whom it was for, and its fault
  // or, if that is OK, its answer. Must not block. To be set before the first request.
  using Observer =
      std::function<void(const LoadedVersion&, const InferenceRequest&, const absl::Status&, const InferenceAnswer&)>;
  void OnAnswer(Observer observer) { observer_ = std::move(observer); }

  // Answers, now or later, with one of
  //   INVALID_ARGUMENT    names the model and the bytes it expects, or the image's fault
  //   RESOURCE_EXHAUSTED  too much waits already; with a retry hint (retry_hint.h)
  //   DEADLINE_EXCEEDED   the deadline cannot be met, with a retry hint, or has passed while the request waited
  //   CANCELLED           by Cancel, before the forward pass
  //   INTERNAL            the model failed on a row of this request, which is named
  //   UNAVAILABLE         the engine ends
  // and counts the request in the version's series. A request without a deadline has kWaitMax.
  Ticket Infer(std::shared_ptr<const LoadedVersion> version, const InferenceRequest& request, InferenceDone done);
  // Nobody wants the answer any more. The callback is still called, unless it has been.
  void Cancel(Ticket ticket);

  // Computes every size of batch on every executor thread, and learns how long they take: one at a time, when its
  // thread has nothing else to do or has had for a while. Returns when that is done. One caller at a time.
  void Warm(const std::shared_ptr<const LoadedVersion>& version);

  // Requests admitted and not answered.
  int in_flight() const;

  static constexpr absl::Duration kWaitMax = absl::Minutes(1);

 private:
  struct Executor {
    std::function<void()> chore;  // this and the next, guarded by mutex_: null if there is none
    absl::Time chore_due;         // when batches no longer come before it
    std::thread thread;
  };
  using Finished = std::vector<std::shared_ptr<EngineCall>>;

  // Whether a request that comes now is alone.
  bool Quiet(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Admit(const std::shared_ptr<EngineCall>& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The next batch and its calls; those that expired in the queue go into `finished`. Null if there is none.
  std::unique_ptr<BatchJob> Take(Finished& finished) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunExecutor(Executor& executor);
  void Run(BatchJob& job);
  void Complete(BatchJob& job, Finished& finished) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // If nothing more can happen to the call, moves it into `finished`.
  void FinishIfOver(const std::shared_ptr<EngineCall>& call, Finished& finished) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // No more of an admitted call is begun, and the batcher learns how it ended.
  void Close(const EngineCall& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Answer(const Finished& finished);
  // Returns when the executor's thread has run it, or the engine ends.
  void RunOn(Executor& executor, std::function<void()> chore);
  void WarmSize(const LoadedVersion& version, uint32_t rows, bool learn);

  const Batcher::Limits limits_;
  const Clock& clock_;
  Observer observer_ = nullptr;

  mutable Mutex mutex_;
  CondVar work_;
  CondVar chore_done_;
  Batcher batcher_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<Ticket, std::shared_ptr<EngineCall>> calls_ ABSL_GUARDED_BY(mutex_);
  Ticket tickets_ ABSL_GUARDED_BY(mutex_) = 0;
  int busy_ ABSL_GUARDED_BY(mutex_) = 0;  // threads with a batch in hand, until its answers are given
  absl::Time quiet_since_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<Executor> executors_;
};

}  // namespace millrace
