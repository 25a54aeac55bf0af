#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace millrace {

// A process's metrics, in the Prometheus text format at /metrics. Names follow Prometheus: `millrace_` first, base
// units (seconds, bytes), `_total` on counters. From the start it holds millrace_build_info and the standard process_*
// series.
//
//   prometheus::Counter& batches = metrics.Counter("millrace_data_batches_total", "Batches sent.", {{"split",
//   "train"}}); batches.Increment();
//
// Any thread. A metric lives as long as its Metrics; asking again for the same name and labels gives the same metric. A
// look-up takes a lock, so keep the reference where it is hot. One name has one type, and labels come from small fixed
// sets (never from a peer's text): anything else is our bug, and throws std::exception.
class Metrics {
 public:
  using Labels = std::map<std::string, std::string>;

  // `service` is the process's name, e.g. "millrace-data".
  explicit Metrics(std::string_view service);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  prometheus::Counter& Counter(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  // `bounds` are the upper edges of the buckets, ascending; +Inf is added.
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                                   const Labels& labels = {});

  // Everything, in text format 0.0.4.
  std::string Render() const;

  // For collectors of one's own.
  std::shared_ptr<prometheus::Registry> registry() { return registry_; }

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
};

// Bucket edges for times of calls and steps: 50 microseconds to 10 seconds, about three per decade.
const std::vector<double>& LatencyBuckets();

}  // namespace millrace
