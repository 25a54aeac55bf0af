#pragma once

#include <vector>

#include "prometheus/metric_family.h"

namespace millrace {

// The standard process_* series (CPU seconds, resident and virtual bytes, file descriptors, start time, threads), read
// from /proc/self at each call. A series whose file cannot be read is left out. Any thread.
std::vector<prometheus::MetricFamily> CollectProcessMetrics();

}  // namespace millrace
