// Workers that compute nothing, each on a thread of this process: they take leases, wait for the weights, push the same
// gradient every time and report it, through the clients that a real worker has, on connections of their own.
//
// Threads: the object belongs to one; `on_version` is called on worker 0's.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/aligned_buffer.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "services/worker/worker_metrics.h"
#include "tests/bench/bench_cluster.h"

namespace millrace {

class SimulatedWorkers {
 public:
  // Called for every version that worker 0 has received whole. The cluster must outlive the workers.
  SimulatedWorkers(const BenchCluster& cluster, uint32_t count, absl::Duration compute,
                   std::function<void(uint64_t)> on_version);
  // Ends them.
  ~SimulatedWorkers();

  // All have pushed something.
  bool all_at_work() const { return at_work_ == threads_.size(); }
  uint64_t pushes() const { return pushes_; }
  uint64_t parameters() const { return parameters_; }
  // The first error of any of them.
  absl::Status status() const;

 private:
  using Gradient = std::shared_ptr<const AlignedBuffer<float>>;

  void Run(uint32_t worker);
  absl::Status Work(uint32_t worker);
  // The sum over so many slots.
  Gradient SumOf(uint32_t slots);

  const BenchCluster& cluster_;
  const absl::Duration compute_;  // how long a lease takes
  const std::function<void(uint64_t)> on_version_;
  Metrics metrics_;
  const WorkerMetrics worker_metrics_;
  std::atomic<bool> stopping_ = false;
  std::atomic<uint64_t> at_work_ = 0, pushes_ = 0, parameters_ = 0;

  mutable Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::map<uint32_t, Gradient> sums_ ABSL_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;
};

}  // namespace millrace
