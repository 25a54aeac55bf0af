// The job's metrics: millrace_coordinator_* says how the cluster works together, millrace_training_* how the training
// is going. Any thread, one at a time.
#pragma once

#include <cstdint>

#include "millrace/v1/coordinator.pb.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"

namespace millrace {

class Metrics;

class CoordinatorMetrics {
 public:
  explicit CoordinatorMetrics(Metrics* metrics);

  // Brings everything that JobStatus holds up to date.
  void Update(const v1::JobStatus& status);
  // Where the time of a lease went.
  void CountReport(const v1::Report& report);
  void CountFingerprintMismatch() { fingerprint_mismatches_.Increment(); }
  // A new run begins, and so many steps are to be made again.
  void CountRecovery(uint64_t steps) { recoveries_.Increment(), repeated_steps_.Increment(static_cast<double>(steps)); }
  // From the last progress before a recovery to the first after it.
  void ObserveRecovery(double seconds) { recovery_seconds_.Observe(seconds); }

 private:
  prometheus::Gauge& workers_;
  prometheus::Counter& regranted_;
  prometheus::Counter& duplicates_;
  prometheus::Counter& mismatches_;
  prometheus::Counter& visit_mismatches_;
  prometheus::Counter& fingerprint_mismatches_;
  prometheus::Counter& recoveries_;
  prometheus::Counter& repeated_steps_;
  prometheus::Histogram& recovery_seconds_;
  prometheus::Gauge& version_;
  prometheus::Gauge& epoch_;
  prometheus::Gauge& loss_;
  prometheus::Gauge& accuracy_;
  prometheus::Gauge& learning_rate_;
  prometheus::Gauge& images_per_second_;
  prometheus::Counter& images_;
  prometheus::Gauge& validation_loss_;
  prometheus::Gauge& validation_accuracy_;
  prometheus::Gauge& committed_version_;
  prometheus::Gauge& exported_version_;
  prometheus::Counter& data_wait_seconds_;
  prometheus::Counter& weights_wait_seconds_;
  prometheus::Counter& compute_seconds_;
  prometheus::Counter& push_seconds_;
};

}  // namespace millrace
