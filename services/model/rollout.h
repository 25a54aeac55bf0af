// A candidate that is tried beside the version that serves, before it may take its place.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "services/model/inference.h"
#include "services/model/loaded_version.h"
#include "services/model/model_metrics.h"
#include "services/model/rollout_judge.h"
#include "services/model/shadow_runner.h"

namespace millrace {

struct RolloutOptions {
  enum class Mode {
    kImmediate,  // none: a verified version serves at once
    kCanary,     // the candidate answers a fraction of the requests
    kShadow,     // the candidate answers nobody; copies of requests are computed
  };
  Mode mode = Mode::kImmediate;
  double canary_fraction = 0.05;  // (0, 1]
  RolloutLimits limits = {};
};
// INVALID_ARGUMENT names the flag and its range.
absl::Status CheckOptions(const RolloutOptions& options);

// Which requests of a stable version go to the candidate, and what came of the comparison. In both modes what is
// compared are copies, computed by both versions apart from the requests (shadow_runner.h): in canary mode of the
// requests that the candidate answers, in shadow mode of all for which there is room.
//
// Threads: any.
class Rollout : public std::enable_shared_from_this<Rollout> {
 public:
  // `settle` is called once, when the verdict has fallen, on the runner's thread.
  Rollout(std::shared_ptr<const LoadedVersion> candidate, const RolloutOptions& options,
          std::shared_ptr<ShadowRunner> runner, std::shared_ptr<ModelMetrics> metrics, std::function<void()> settle);

  const std::shared_ptr<const LoadedVersion>& candidate() const { return candidate_; }

  // The version that is to answer a request which named none and was to get `stable`. In canary mode the same key gets
  // the same version as long as the rollout lasts; without a key the input is the key. Once the verdict has fallen, all
  // get the stable version.
  std::shared_ptr<const LoadedVersion> Choose(std::shared_ptr<const LoadedVersion> stable,
                                              const InferenceRequest& request) const;
  // The same for a request that is being answered: takes a copy of it if it is to be compared.
  std::shared_ptr<const LoadedVersion> Route(std::shared_ptr<const LoadedVersion> stable,
                                             const InferenceRequest& request);

  std::optional<RolloutVerdict> verdict() const;
  // For people: "canary of 5 % of the requests: 240 of 1000 rows compared, 99.58 % agree".
  std::string Progress() const;

 private:
  // Whether the request takes part: there is no verdict yet, and it is one that will be answered.
  bool Concerns(const LoadedVersion& stable, const InferenceRequest& request) const;
  bool IsCanarys(const InferenceRequest& request) const;
  void Shadow(const std::shared_ptr<const LoadedVersion>& stable, const InferenceRequest& request);
  void Add(const Comparison& comparison);

  const std::shared_ptr<const LoadedVersion> candidate_;
  const RolloutOptions options_;
  const std::shared_ptr<ShadowRunner> runner_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const ModelMetrics::RolloutRows rows_;
  const std::function<void()> settle_;
  std::atomic<bool> over_ = false;

  mutable Mutex mutex_;
  RolloutJudge judge_ ABSL_GUARDED_BY(mutex_);
};

// The version that is to answer: `found`, which serves, unless a rollout has it otherwise. One branch without one.
inline std::shared_ptr<const LoadedVersion> RouteRequest(std::shared_ptr<const LoadedVersion> found,
                                                         const InferenceRequest& request) {
  const std::shared_ptr<Rollout> rollout = found->rollout();
  if (rollout == nullptr || !request.any_version) return found;
  return rollout->Route(std::move(found), request);
}
// The version that would answer such a request: for a question about its answer.
inline std::shared_ptr<const LoadedVersion> AnswererOf(std::shared_ptr<const LoadedVersion> found,
                                                       const InferenceRequest& request) {
  const std::shared_ptr<Rollout> rollout = found->rollout();
  if (rollout == nullptr || !request.any_version) return found;
  return rollout->Choose(std::move(found), request);
}

}  // namespace millrace
