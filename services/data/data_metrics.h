#pragma once

#include "common/metrics.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// The data service's own metrics. Any thread. Where a run waits shows in two of them: credit_wait grows while clients
// ask for nothing (they compute), send_wait while they or the network do not take what they asked for.
struct DataMetrics {
  explicit DataMetrics(Metrics& metrics);

  struct PerSplit {
    prometheus::Counter& batches;
    prometheus::Counter& bytes;
    prometheus::Counter& samples;
  };
  // `split` is one of the three.
  PerSplit& of(v1::Split split) { return per_split[split - 1]; }

  PerSplit per_split[3];
  prometheus::Gauge& streams;
  prometheus::Counter& credit_wait_seconds;
  prometheus::Counter& send_wait_seconds;
  prometheus::Gauge& load_seconds;
  prometheus::Gauge& dataset_samples;
  prometheus::Gauge& dataset_bytes;
};

}  // namespace millrace
