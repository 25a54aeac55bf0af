// A model version in memory: what answers, and the account of what it answered.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "services/model/batcher.h"
#include "services/model/canary_set.h"
#include "services/model/model_metrics.h"
#include "services/model/predictor.h"
#include "services/model/version_statistics.h"

namespace millrace {

class Rollout;

// Any thread. Shared by the serving table and the requests under way; the last of them hands it to the janitor.
class LoadedVersion {
 public:
  LoadedVersion(std::unique_ptr<const Predictor> predictor, std::shared_ptr<VersionSeries> series, uint64_t identity,
                std::optional<CanaryScore> canary_score = std::nullopt)
      : predictor_(std::move(predictor)),
        series_(std::move(series)),
        identity_(identity),
        canary_score_(canary_score) {}

  const ModelInfo& info() const { return predictor_->info(); }
  const Predictor& predictor() const { return *predictor_; }
  VersionSeries& series() const { return *series_; }
  // If there is a canary set that says something about it.
  const std::optional<CanaryScore>& canary_score() const { return canary_score_; }

  // AvailableVersion::identity of the files that it was loaded from.
  uint64_t identity() const { return identity_; }

  // Outlives the version where it is wanted.
  const std::shared_ptr<VersionStatistics>& statistics() const { return statistics_; }

  // What tries a candidate beside this version, which serves; null if nothing does.
  std::shared_ptr<Rollout> rollout() const {
    if (!in_rollout_.load(std::memory_order_acquire)) return nullptr;
    MutexLock lock(&mutex_);
    return rollout_;
  }
  void SetRollout(std::shared_ptr<Rollout> rollout) const {
    MutexLock lock(&mutex_);
    in_rollout_.store(rollout != nullptr, std::memory_order_release);
    rollout_.swap(rollout);  // the one before goes after the lock
  }

  // The inference engine's, which guards them. k...Alone: rows that share a batch but no forward pass.
  enum class LaneKind { kRaw, kFloats, kImages, kAlone, kFloatsAlone };
  Lane& lane(LaneKind kind) const { return lanes_[static_cast<size_t>(kind)]; }

  uint64_t requests() const { return requests_.load(std::memory_order_relaxed); }
  void CountRequest() const { requests_.fetch_add(1, std::memory_order_relaxed); }

 private:
  const std::unique_ptr<const Predictor> predictor_;
  const std::shared_ptr<VersionSeries> series_;
  const uint64_t identity_;
  const std::optional<CanaryScore> canary_score_;
  const std::shared_ptr<VersionStatistics> statistics_ = std::make_shared<VersionStatistics>();
  mutable std::atomic<uint64_t> requests_{0};
  mutable std::array<Lane, 5> lanes_;
  mutable std::atomic<bool> in_rollout_{false};
  mutable Mutex mutex_;
  mutable std::shared_ptr<Rollout> rollout_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
