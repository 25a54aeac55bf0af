// A worker process of a simulated job: sessions with back-off as Worker keeps them, and in each the step loop itself.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/aligned_buffer.h"
#include "services/worker/activity.h"
#include "services/worker/work_loop.h"
#include "tests/simulation/servers.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

// The data service is a pure function; what can go wrong is that it is away, or slow.
struct DataService {
  bool up = true;
  absl::Duration delay = absl::Milliseconds(5);  // of a batch, at most
};

// One life of one worker process; its end is a kill, if it does not end of itself.
class SimulatedWorker {
 public:
  SimulatedWorker(Job* job, const DataService* data, const WorkerMetrics* metrics, uint32_t number);
  ~SimulatedWorker();

  Process& process() { return *process_; }
  // SIGTERM.
  void Drain();
  void SetSlowness(double factor) { slowness_ = factor; }

  bool ended() const { return ended_; }
  // Of the end; a job that is done and a drain are OK.
  const absl::Status& status() const { return status_; }

 private:
  class Batches;

  void Run();
  absl::StatusOr<WorkLoop::End> RunSession(bool& welcomed);
  bool Compute();

  Job& job_;
  const DataService& data_;
  const WorkerMetrics& metrics_;
  const uint64_t incarnation_;
  const std::shared_ptr<Process> process_;
  Activity activity_;
  AlignedBuffer<float> parameters_;
  double slowness_ = 1;
  bool draining_ = false;
  bool ended_ = false;
  absl::Status status_;
  WorkLoop* loop_ = nullptr;  // while a session runs
};

}  // namespace millrace::simulation
