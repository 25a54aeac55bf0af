#include "services/data/data_metrics.h"

namespace millrace {
namespace {

DataMetrics::PerSplit ForSplit(Metrics& metrics, const char* split) {
  const Metrics::Labels labels = {{"split", split}};
  return {metrics.Counter("millrace_data_batches_total", "Batches sent.", labels),
          metrics.Counter("millrace_data_bytes_total", "Bytes of batch messages sent.", labels),
          metrics.Counter("millrace_data_samples_total", "Samples sent.", labels)};
}

}  // namespace

DataMetrics::DataMetrics(Metrics& metrics)
    : per_split{ForSplit(metrics, "train"), ForSplit(metrics, "validation"), ForSplit(metrics, "test")},
      streams(metrics.Gauge("millrace_data_streams", "Open batch streams.")),
      credit_wait_seconds(
          metrics.Counter("millrace_data_credit_wait_seconds_total",
                          "Time in which open streams had nothing asked of them, summed over streams.")),
      send_wait_seconds(metrics.Counter("millrace_data_send_wait_seconds_total",
                                        "Time for which batches waited to be taken, summed over streams.")),
      load_seconds(metrics.Gauge("millrace_data_load_seconds", "Time that reading and checking the dataset took.")),
      dataset_samples(metrics.Gauge("millrace_data_dataset_samples", "Samples in the train and test files.")),
      dataset_bytes(metrics.Gauge("millrace_data_dataset_bytes", "Bytes of images and labels in memory.")) {}

}  // namespace millrace
