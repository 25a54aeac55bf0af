// The worker process: keeps a session with the coordinator, and in it runs the step loop.
//
// A session begins with a welcome, which says what the job is and where everything is, and ends with the job, a drain,
// or a lost connection. After a loss the worker tries again with back-off, for as long as `coordinator_timeout`. A
// worker that the coordinator sent away, because its name was taken over or it was expelled, ends.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model/replica.h"
#include "common/mutex.h"
#include "common/service_runtime.h"
#include "services/worker/activity.h"
#include "services/worker/work_loop.h"
#include "services/worker/worker_metrics.h"

namespace millrace {

class Worker : public Service {
 public:
  struct Options {
    std::string coordinator;                                     // address
    std::string name;                                            // unique among live workers
    absl::Duration coordinator_timeout = absl::Seconds(60);      // of absence, before the worker gives up
    int threads = 1;                                             // as ConfigureTorch was told
    std::string device = "cpu";                                  // as ResolveDevice gave it
  };

  // ConfigureTorch must have been called. `context` must outlive the worker.
  Worker(Options options, ServiceContext* context);
  ~Worker() override;

  absl::Status Ready() override;
  std::string StatusPage() override;
  absl::Status Started(const ListenAddresses& addresses) override;
  void Drain(absl::Duration grace) override;

 private:
  void Run();
  // From hello to the end of the step loop. `welcomed` tells whether the coordinator answered.
  absl::StatusOr<WorkLoop::End> RunSession(bool& welcomed);
  absl::StatusOr<WorkLoop::End> RunLoop(const v1::JobPlan& plan, WorkLoop::Parts parts);
  v1::Hello Hello() const;
  absl::StatusOr<Replica*> ReplicaFor(const v1::JobPlan& plan);
  // An error once the worker is to end.
  absl::Status StopRequested() const;
  void WaitUnlessDraining(absl::Duration time);

  const Options options_;
  ServiceContext& context_;
  const WorkerMetrics metrics_;
  const uint64_t incarnation_;
  Activity activity_;
  std::unique_ptr<Replica> replica_;  // kept between sessions of the same network; used by the thread only

  mutable Mutex mutex_;
  CondVar changed_;
  WorkLoop* loop_ ABSL_GUARDED_BY(mutex_) = nullptr;  // while a session runs
  std::string job_ ABSL_GUARDED_BY(mutex_);           // one line about the plan; empty without a session
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;        // the thread is done

  std::thread thread_;
};

}  // namespace millrace
