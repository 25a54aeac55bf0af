// The worker's series, looked up once.
#pragma once

#include "common/metrics.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Any thread. Refers to `metrics`.
struct WorkerMetrics {
  explicit WorkerMetrics(Metrics& metrics);

  // Of a lease kind.
  prometheus::Counter& Samples(v1::Lease::Kind kind) const;

  prometheus::Counter& train_samples;  // millrace_worker_samples_total{kind}
  prometheus::Counter& validation_samples;
  prometheus::Counter& test_samples;
  // millrace_worker_step_seconds{phase}: where the time of a train lease goes
  prometheus::Histogram& data_seconds;
  prometheus::Histogram& weights_seconds;
  prometheus::Histogram& compute_seconds;
  prometheus::Histogram& push_seconds;
  prometheus::Counter& finished_leases;  // millrace_worker_leases_total{outcome}
  prometheus::Counter& declined_leases;
  prometheus::Counter& pushed_bytes;        // gradients, to all shards; repeats count again
  prometheus::Counter& received_bytes;      // weights
  prometheus::Counter& exchange_breaks;     // exchanges with a shard that ended and were opened again
  prometheus::Counter& data_breaks;         // streams of batches that were lost, or left because they were silent
  prometheus::Counter& coordinator_breaks;  // connections to the coordinator that were lost
  prometheus::Gauge& version;               // of the weights held
};

}  // namespace millrace
