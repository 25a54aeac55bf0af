#include "services/worker/worker_metrics.h"

#include <string>

namespace millrace {
namespace {

prometheus::Counter& SamplesOf(Metrics& metrics, const std::string& kind) {
  return metrics.Counter("millrace_worker_samples_total", "Samples computed.", {{"kind", kind}});
}

prometheus::Histogram& Phase(Metrics& metrics, const std::string& phase) {
  return metrics.Histogram("millrace_worker_step_seconds", "Time of a train lease by phase.", LatencyBuckets(),
                           {{"phase", phase}});
}

prometheus::Counter& Leases(Metrics& metrics, const std::string& outcome) {
  return metrics.Counter("millrace_worker_leases_total", "Leases by outcome.", {{"outcome", outcome}});
}

prometheus::Counter& Breaks(Metrics& metrics, const std::string& peer) {
  return metrics.Counter("millrace_worker_connections_lost_total", "Connections lost, by peer.", {{"peer", peer}});
}

}  // namespace

WorkerMetrics::WorkerMetrics(Metrics& metrics)
    : train_samples(SamplesOf(metrics, "train")),
      validation_samples(SamplesOf(metrics, "validation")),
      test_samples(SamplesOf(metrics, "test")),
      data_seconds(Phase(metrics, "data")),
      weights_seconds(Phase(metrics, "weights")),
      compute_seconds(Phase(metrics, "compute")),
      push_seconds(Phase(metrics, "push")),
      finished_leases(Leases(metrics, "finished")),
      declined_leases(Leases(metrics, "declined")),
      pushed_bytes(metrics.Counter("millrace_worker_pushed_bytes_total", "Gradient bytes sent to shards.")),
      received_bytes(metrics.Counter("millrace_worker_received_bytes_total", "Weight bytes received from shards.")),
      exchange_breaks(Breaks(metrics, "shard")),
      data_breaks(Breaks(metrics, "data")),
      coordinator_breaks(Breaks(metrics, "coordinator")),
      version(metrics.Gauge("millrace_worker_weights_version", "Version of the weights held, in steps.")) {}

prometheus::Counter& WorkerMetrics::Samples(v1::Lease::Kind kind) const {
  switch (kind) {
    case v1::Lease::KIND_VALIDATION:
      return validation_samples;
    case v1::Lease::KIND_TEST:
      return test_samples;
    default:
      return train_samples;
  }
}

}  // namespace millrace
