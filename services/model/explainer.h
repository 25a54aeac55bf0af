// Says why a version answered as it did (common/model/explanation.h), one request after the other, on a thread that
// gets what predictions leave of the processors.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/model/explanation.h"
#include "common/mutex.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"

namespace millrace {

inline constexpr uint32_t kExplainRowsMax = 16;

struct ExplainAnswer {
  std::vector<Explanation> explanations;  // one per row
  std::vector<uint8_t> images;            // uint8 [rows, channels, height, width], as the model saw them
  absl::Duration compute;
  bool cached = false;  // answered from memory: `compute` is what it took then
};

// Threads: any. Metrics: millrace_model_explanations_total{result}, millrace_model_explain_seconds.
class Explainer {
 public:
  using Ticket = uint64_t;
  // Called exactly once for a request, on any thread, also before Explain returns. Must not block.
  using Done = std::function<void(absl::StatusOr<ExplainAnswer>)>;

  static constexpr size_t kWaitingMax = 16;
  static constexpr size_t kCachedMax = 128;  // answers, the last used

  // `metrics` and `clock` must outlive the explainer.
  Explainer(Metrics& metrics, const Clock& clock);
  // What runs ends soon; all that waits is UNAVAILABLE.
  ~Explainer();
  Explainer(const Explainer&) = delete;
  Explainer& operator=(const Explainer&) = delete;

  // Answers, now or later, also with INVALID_ARGUMENT (input or options; the fault is named), RESOURCE_EXHAUSTED (too
  // many wait), DEADLINE_EXCEEDED (also in the middle), CANCELLED (by Cancel, also in the middle), INTERNAL (the model
  // failed), UNAVAILABLE (the explainer ends). The same question about the same version is computed once. Of `request`
  // kind kRaw or kImage; kFloats is INVALID_ARGUMENT.
  Ticket Explain(std::shared_ptr<const LoadedVersion> version, const InferenceRequest& request, ExplainOptions options,
                 Done done);
  // Nobody wants the answer any more. The callback is still called, unless it has been.
  void Cancel(Ticket ticket);

 private:
  struct Job {
    Ticket ticket;
    std::shared_ptr<const LoadedVersion> version;
    InferenceRequest request;
    ExplainOptions options;
    Done done;
  };
  struct Cached {
    std::string question;
    ExplainAnswer answer;
  };

  void Run();
  absl::StatusOr<ExplainAnswer> Answer(const Job& job);
  absl::StatusOr<ExplainAnswer> Compute(const Job& job, std::vector<uint8_t> images);
  // An error once nobody waits for the job any more.
  absl::Status GoOn(const Job& job) const;
  void Count(const absl::Status& status);
  std::optional<ExplainAnswer> Recall(const std::string& question);

  Metrics& metrics_;
  const Clock& clock_;
  prometheus::Histogram& seconds_;

  std::list<Cached> cache_;  // of the explainer's thread; last used first

  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  Ticket last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Job> waiting_ ABSL_GUARDED_BY(mutex_);
  Ticket running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool running_cancelled_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;
};

}  // namespace millrace
