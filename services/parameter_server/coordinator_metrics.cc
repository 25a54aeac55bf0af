#include "services/parameter_server/coordinator_metrics.h"

#include <algorithm>

#include "common/metrics.h"

namespace millrace {
namespace {

prometheus::Counter& PhaseCounter(Metrics* metrics, const char* phase) {
  return metrics->Counter("millrace_training_worker_seconds_total", "Where the workers' time went.",
                          {{"phase", phase}});
}

void RaiseTo(prometheus::Counter& counter, double value) { counter.Increment(std::max(0.0, value - counter.Value())); }

// A counter must not go down or become infinite, whatever a worker says.
double Plausible(double seconds) { return std::max(0.0, std::min(seconds, 86400.0)); }

}  // namespace

CoordinatorMetrics::CoordinatorMetrics(Metrics* metrics)
    : workers_(metrics->Gauge("millrace_coordinator_workers", "Workers connected.")),
      regranted_(metrics->Counter("millrace_coordinator_regranted_leases_total",
                                  "Leases taken back from late or lost workers before they were done.")),
      duplicates_(metrics->Counter("millrace_coordinator_duplicate_results_total",
                                   "Results of units that had been accepted already.")),
      mismatches_(metrics->Counter("millrace_coordinator_checksum_mismatches_total",
                                   "Duplicate results that differ from the accepted one: corruption.")),
      visit_mismatches_(metrics->Counter("millrace_coordinator_visit_mismatches_total",
                                         "Epochs, or parts, in which not every sample was trained exactly once.")),
      fingerprint_mismatches_(metrics->Counter("millrace_coordinator_fingerprint_mismatches_total",
                                               "Workers whose LibTorch, CPU or threads differ from the run's, so that "
                                               "gradients may have other bits.")),
      recoveries_(metrics->Counter("millrace_coordinator_recoveries_total",
                                   "Times that the job went back to a committed checkpoint.")),
      repeated_steps_(
          metrics->Counter("millrace_coordinator_repeated_steps_total", "Steps that recoveries made again.")),
      recovery_seconds_(metrics->Histogram("millrace_coordinator_recovery_seconds",
                                           "From the last progress before a recovery to the first after it.",
                                           LatencyBuckets())),
      version_(metrics->Gauge("millrace_training_version", "Steps applied.")),
      epoch_(metrics->Gauge("millrace_training_epoch", "Completed epochs.")),
      loss_(metrics->Gauge("millrace_training_loss", "Mean loss of the last 100 steps, per sample.")),
      accuracy_(metrics->Gauge("millrace_training_accuracy", "Accuracy over the last 100 steps.")),
      learning_rate_(metrics->Gauge("millrace_training_learning_rate", "Of the next step.")),
      images_per_second_(metrics->Gauge("millrace_training_images_per_second", "Over the last seconds of training.")),
      images_(metrics->Counter("millrace_training_images_total", "Samples trained on in this run.")),
      validation_loss_(metrics->Gauge("millrace_training_validation_loss", "Of the last epoch, per sample.")),
      validation_accuracy_(metrics->Gauge("millrace_training_validation_accuracy", "Of the last epoch.")),
      committed_version_(metrics->Gauge("millrace_coordinator_committed_version", "Newest committed checkpoint.")),
      exported_version_(metrics->Gauge("millrace_coordinator_exported_version", "Newest servable version.")),
      data_wait_seconds_(PhaseCounter(metrics, "data_wait")),
      weights_wait_seconds_(PhaseCounter(metrics, "weights_wait")),
      compute_seconds_(PhaseCounter(metrics, "compute")),
      push_seconds_(PhaseCounter(metrics, "push")) {}

void CoordinatorMetrics::Update(const v1::JobStatus& status) {
  workers_.Set(status.workers_size());
  RaiseTo(regranted_, static_cast<double>(status.regranted_leases()));
  RaiseTo(duplicates_, static_cast<double>(status.duplicate_results()));
  RaiseTo(mismatches_, static_cast<double>(status.checksum_mismatches()));
  RaiseTo(visit_mismatches_, static_cast<double>(status.visit_mismatches()));
  version_.Set(static_cast<double>(status.version()));
  epoch_.Set(static_cast<double>(status.epoch()));
  loss_.Set(status.train_loss());
  accuracy_.Set(status.train_accuracy());
  learning_rate_.Set(status.learning_rate());
  images_per_second_.Set(status.images_per_second());
  RaiseTo(images_, static_cast<double>(status.trained_samples()));
  committed_version_.Set(static_cast<double>(status.committed_version()));
  exported_version_.Set(static_cast<double>(status.exported_version()));
  if (status.validation().empty()) return;
  validation_loss_.Set(status.validation().rbegin()->loss());
  if (!status.validation().rbegin()->has_accuracy()) return;
  validation_accuracy_.Set(status.validation().rbegin()->accuracy());
}

void CoordinatorMetrics::CountReport(const v1::Report& report) {
  data_wait_seconds_.Increment(Plausible(report.data_wait_seconds()));
  weights_wait_seconds_.Increment(Plausible(report.weights_wait_seconds()));
  compute_seconds_.Increment(Plausible(report.compute_seconds()));
  push_seconds_.Increment(Plausible(report.push_seconds()));
}

}  // namespace millrace
