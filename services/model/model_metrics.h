// The model service's own series. Those of a version are removed with it, so that a service which loads a version a
// minute does not grow without end.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "prometheus/family.h"

namespace millrace {

class VersionSeries;

//   millrace_model_loads_total{model,result,reason}          result: loaded, refused, failed; reason: of a refusal,
//   else "" millrace_model_load_seconds{model}                       of versions that were loaded
//   millrace_model_active_version{model}, millrace_model_active_step{model}
//   millrace_model_repository_readable                       0 or 1
//   millrace_model_requests_in_flight                        admitted: waiting or running
//   millrace_model_requests_total{model,version,code}
//   millrace_model_request_seconds{model,version}            in the service: waiting, decoding, forward pass
//   millrace_model_queue_seconds{model,version}              waiting for an executor
//   millrace_model_compute_seconds{model,version}            in the forward pass
// Threads: any. Held by shared ownership because versions, and so their series, can outlive the rest of the service.
class ModelMetrics : public std::enable_shared_from_this<ModelMetrics> {
 public:
  static std::shared_ptr<ModelMetrics> Create(Metrics& metrics);

  // The series live as long as the returned object.
  std::unique_ptr<VersionSeries> AddVersion(const std::string& model, uint64_t version);

  void CountLoad(const std::string& model, const std::string& result, const std::string& reason);
  void ObserveLoadTime(const std::string& model, absl::Duration time);
  void SetActive(const std::string& model, uint64_t version, uint64_t step);
  void SetRepositoryReadable(bool readable) { repository_readable_->Set(readable ? 1 : 0); }
  void SetInFlight(int requests) { in_flight_->Set(requests); }

 private:
  friend class VersionSeries;
  explicit ModelMetrics(prometheus::Registry& registry);

  prometheus::Family<prometheus::Counter>& loads_;
  prometheus::Family<prometheus::Histogram>& load_seconds_;
  prometheus::Family<prometheus::Gauge>& active_version_;
  prometheus::Family<prometheus::Gauge>& active_step_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& request_seconds_;
  prometheus::Family<prometheus::Histogram>& queue_seconds_;
  prometheus::Family<prometheus::Histogram>& compute_seconds_;
  prometheus::Gauge* repository_readable_;
  prometheus::Gauge* in_flight_;
};

// The series of one version, for as long as it is in memory.
class VersionSeries {
 public:
  ~VersionSeries();
  VersionSeries(const VersionSeries&) = delete;
  VersionSeries& operator=(const VersionSeries&) = delete;

  void CountRequest(absl::StatusCode code, absl::Duration total);
  // Of a request that was answered.
  void ObserveParts(absl::Duration queue, absl::Duration compute);

 private:
  friend class ModelMetrics;
  static constexpr int kCodes = 17;  // of gRPC

  VersionSeries(std::shared_ptr<ModelMetrics> owner, prometheus::Labels labels);

  const std::shared_ptr<ModelMetrics> owner_;
  const prometheus::Labels labels_;
  std::array<std::atomic<prometheus::Counter*>, kCodes> requests_{};  // made when first needed
  prometheus::Histogram* const request_seconds_;
  prometheus::Histogram* const queue_seconds_;
  prometheus::Histogram* const compute_seconds_;
};

}  // namespace millrace
