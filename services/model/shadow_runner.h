// Computes copies of requests for nobody but the rollout that compares their answers.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"
#include "services/model/rollout_judge.h"

namespace millrace {

// A copy of a request, or of its first rows.
struct ShadowJob {
  std::shared_ptr<const LoadedVersion> stable = {};
  std::shared_ptr<const LoadedVersion> candidate = {};
  InferenceRequest::Kind kind = InferenceRequest::Kind::kRaw;
  uint32_t rows = 1;
  bool deterministic = false;
  std::vector<uint8_t> bytes = {};                  // of raw rows and images
  std::vector<float> floats = {};                   // of rows of floats
  std::function<void(const Comparison&)> compared;  // called once with what both made of it; on the runner's thread
};

// One thread, which gets what requests leave of the processors: under load the queue fills, and what does not fit is
// dropped. Each job is computed by both versions, one after the other and in turns first, so that their times can be
// compared; they are the thread's processor time, which does not count waiting for others.
//
// Threads: any.
class ShadowRunner {
 public:
  static constexpr size_t kJobsMax = 64;                // waiting
  static constexpr uint32_t kRowsMax = 32;              // of a job
  static constexpr size_t kBytesMax = size_t{1} << 20;  // of a job's input

  ShadowRunner();
  // Stops.
  ~ShadowRunner();
  ShadowRunner(const ShadowRunner&) = delete;
  ShadowRunner& operator=(const ShadowRunner&) = delete;

  // Whether a job would find a place: worth the copy.
  bool has_room() const;
  // False if it is dropped: too many wait, or the runner has stopped.
  bool Offer(ShadowJob job);
  // Returns when the job under way has ended; what waits is dropped.
  void Stop();

 private:
  void Run();

  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<ShadowJob> waiting_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

// What both versions make of the job; on the caller's thread. Nothing is compared of an image that cannot be decoded.
Comparison RunShadow(const ShadowJob& job, bool candidate_first);

}  // namespace millrace
