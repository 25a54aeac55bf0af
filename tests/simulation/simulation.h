// A whole training job in one thread: production code for all that decides and for all that is kept, a simulated clock,
// network and disk under it, and faults of every kind drawn from a seed.
//
//   SimulationResult result = Simulator().Run({.seed = 812});
//   if (!result.violation.empty()) ...   // the same seed gives the same run, event by event
//
// In every schedule it must hold that
//  - each (step, slot) and each evaluation batch is counted exactly once;
//  - every version that a shard makes, saves, exports or loads has the bits of the sequential reference, weights and
//    optimizer state;
//  - whoever waits names a cause: the job's status while nothing goes on;
//  - leases per worker, messages to a worker, batches asked for, checkpoints queued and snapshots are bounded;
//  - a restart finds the version that was last committed, or the one whose commit was in progress, whole;
//  - a job fails only for a reason, and once the faults stop it is done within a bounded time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace millrace::simulation {

struct SimulationOptions {
  uint64_t seed = 0;
  bool trace = false;  // the story, line by line, to stderr
};

struct SimulationResult {
  std::string violation;  // empty if all held
  uint64_t events = 0;
  uint64_t digest = 0;  // of the run: equal for equal runs
  double seconds = 0;   // of simulated time
  // What happened, so that a test can tell that it did.
  uint32_t worker_kills = 0;
  uint32_t server_kills = 0;
  uint32_t power_failures = 0;
  uint32_t pauses = 0;
  uint32_t broken_streams = 0;
  uint32_t disk_failures = 0;
  uint32_t restarts = 0;  // runs of the job after the first
  uint64_t regranted_leases = 0;
  uint64_t duplicate_results = 0;
};

// Keeps what is costly to make between runs. Threads: one.
class Simulator {
 public:
  Simulator();
  ~Simulator();

  SimulationResult Run(const SimulationOptions& options);

 private:
  struct Kept;
  const std::unique_ptr<Kept> kept_;
};

}  // namespace millrace::simulation
