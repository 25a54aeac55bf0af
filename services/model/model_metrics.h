// The model service's own series. Those of a version are removed with it, so that a service which loads a version a
// minute does not grow without end.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "prometheus/family.h"
#include "services/model/batcher.h"
#include "services/model/canary_set.h"
#include "services/model/drift_watch.h"

namespace millrace {

class VersionSeries;

//   millrace_model_loads_total{model,result,reason}          result: loaded, refused, failed; reason: of a refusal,
//   else "" millrace_model_load_seconds{model}                       of versions that were loaded
//   millrace_model_active_version{model}, millrace_model_active_step{model}
//   millrace_model_repository_readable                       0 or 1
//   millrace_model_requests_in_flight{model,version}         admitted: waiting or running
//   millrace_model_requests_total{model,version,code}
//   millrace_model_request_seconds{model,version}            in the service: waiting, decoding, forward pass
//   millrace_model_queue_seconds{model,version}              waiting for an executor
//   millrace_model_batch_wait_seconds{model,version}         from there to the forward pass
//   millrace_model_compute_seconds{model,version}            in the forward pass
//   millrace_model_batch_rows{model,version}                 of batches that were computed
//   millrace_model_batches_total{model,version,release}      why each was begun: idle_executor, freed_executor,
//                                                            rows_limit, bytes_limit, deadline (batcher.h)
//   millrace_model_rejected_total{model,version,reason}      not admitted: queue_requests, queue_rows, queue_bytes,
//   late millrace_model_expired_rows_executed_total{model,version}  computed after their deadline; stays 0
//   millrace_model_candidate_version{model}                  that a rollout tries; 0: none
//   millrace_model_rollouts_total{model,result,reason}       result: promoted, rolled_back, replaced, ended (by a pin);
//                                                            reason: of a verdict against it, else ""
//   millrace_model_rollout_rows_total{model,result}          compared: agree, differ, failed; dropped: not compared
//   millrace_model_canary_score{model,version,measure}       on the canary set, if there is one: accuracy, error
// and those of DriftFamilies (drift_watch.h).
// Threads: any. Held by shared ownership because versions, and so their series, can outlive the rest of the service.
class ModelMetrics : public std::enable_shared_from_this<ModelMetrics> {
 public:
  static std::shared_ptr<ModelMetrics> Create(Metrics& metrics);

  // The series live as long as any object returned for this version: one that is loaded again, while requests of its
  // first life are under way, goes on with them.
  std::shared_ptr<VersionSeries> AddVersion(const std::string& model, uint64_t version);

  void CountLoad(const std::string& model, const std::string& result, const std::string& reason);
  void ObserveLoadTime(const std::string& model, absl::Duration time);
  // From now on no candidate is tried.
  void SetActive(const std::string& model, uint64_t version, uint64_t step);
  void SetCandidate(const std::string& model, uint64_t version);
  void SetPinned(const std::string& model, uint64_t version);
  void CountRollout(const std::string& model, const std::string& result, const std::string& reason);

  // Valid as long as the metrics.
  struct RolloutRows {
    prometheus::Counter* agree;
    prometheus::Counter* differ;
    prometheus::Counter* failed;
    prometheus::Counter* dropped;
  };
  RolloutRows RowsOfRollouts(const std::string& model);
  void SetRepositoryReadable(bool readable) { repository_readable_->Set(readable ? 1 : 0); }

 private:
  friend class VersionSeries;
  using VersionKey = std::pair<std::string, uint64_t>;
  struct UsedSeries {
    std::unique_ptr<VersionSeries> series;
    int users = 0;
  };

  explicit ModelMetrics(prometheus::Registry& registry);
  void Release(const VersionKey& key);

  prometheus::Family<prometheus::Counter>& loads_;
  prometheus::Family<prometheus::Histogram>& load_seconds_;
  prometheus::Family<prometheus::Gauge>& active_version_;
  prometheus::Family<prometheus::Gauge>& active_step_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& request_seconds_;
  prometheus::Family<prometheus::Histogram>& queue_seconds_;
  prometheus::Family<prometheus::Histogram>& batch_wait_seconds_;
  prometheus::Family<prometheus::Histogram>& compute_seconds_;
  prometheus::Family<prometheus::Histogram>& batch_rows_;
  prometheus::Family<prometheus::Counter>& batches_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& expired_rows_;
  prometheus::Family<prometheus::Gauge>& in_flight_;
  prometheus::Family<prometheus::Gauge>& canary_score_;
  prometheus::Family<prometheus::Gauge>& candidate_version_;
  prometheus::Family<prometheus::Gauge>& pinned_version_;
  prometheus::Family<prometheus::Counter>& rollouts_;
  prometheus::Family<prometheus::Counter>& rollout_rows_;
  prometheus::Gauge* repository_readable_;
  const DriftFamilies drift_;

  Mutex mutex_;
  std::map<VersionKey, UsedSeries> used_ ABSL_GUARDED_BY(mutex_);
};

// The series of one version, for as long as it is in memory.
class VersionSeries {
 public:
  ~VersionSeries();
  VersionSeries(const VersionSeries&) = delete;
  VersionSeries& operator=(const VersionSeries&) = delete;

  void CountRequest(absl::StatusCode code, absl::Duration total);
  // Of a request that was answered.
  void ObserveParts(absl::Duration queue, absl::Duration batch_wait, absl::Duration compute);
  void ChangeInFlight(int by) { in_flight_->Increment(by); }
  void ObserveBatch(uint32_t rows, Batcher::Release release);
  void CountRejected(Batcher::Refusal::Reason reason);
  void CountExpiredExecuted(uint32_t rows) { expired_rows_->Increment(rows); }
  // Before other threads have the series.
  void SetCanaryScore(const CanaryScore& score);
  // Before the version serves. For another life of it, which shares the series, the reference is replaced.
  void WatchDrift(uint32_t classes, const std::optional<Distribution>& reference);
  // Null if it is not watched.
  DriftWatch* drift() const { return drift_.get(); }

 private:
  friend class ModelMetrics;
  static constexpr int kCodes = 17;  // of gRPC

  VersionSeries(ModelMetrics& owner, prometheus::Labels labels);
  prometheus::Labels With(const char* label, std::string_view value) const;

  ModelMetrics& owner_;
  const prometheus::Labels labels_;
  std::array<std::atomic<prometheus::Counter*>, kCodes> requests_{};  // made when first needed
  prometheus::Histogram* const request_seconds_;
  prometheus::Histogram* const queue_seconds_;
  prometheus::Histogram* const batch_wait_seconds_;
  prometheus::Histogram* const compute_seconds_;
  prometheus::Histogram* const batch_rows_;
  prometheus::Counter* const expired_rows_;
  prometheus::Gauge* const in_flight_;
  prometheus::Gauge* canary_score_ = nullptr;
  std::array<prometheus::Counter*, Batcher::kReleases> batches_;
  std::array<prometheus::Counter*, Batcher::kReasons> rejected_;
  std::unique_ptr<DriftWatch> drift_;
};

}  // namespace millrace
