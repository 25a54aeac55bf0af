// Watches the replicas of the data service for people: which of them are there, with the job's dataset. Workers find
// out for themselves.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// What the replicas said last. Pure. Threads: one at a time.
class DataReplicaStates {
 public:
  // `fingerprint` is of the job's dataset.
  DataReplicaStates(const std::vector<std::string>& addresses, std::string fingerprint);

  // What a replica has answered. Whether its state is another one than before.
  bool Update(size_t replica, const absl::StatusOr<v1::DatasetIdentity>& answer, absl::Time now);

  const v1::DataReplicaStatus& of(size_t replica) const { return states_[replica].status; }
  std::vector<v1::DataReplicaStatus> Report(absl::Time now) const;

 private:
  struct State {
    v1::DataReplicaStatus status;
    absl::Time since;
  };
  const std::string fingerprint_;
  std::vector<State> states_;
};

// Asks every replica now and again. Threads: one of its own, on which it logs what changes, sets
// millrace_coordinator_data_replica_up and calls `tell`; it ends with the object, within `timeout`.
class DataMonitor {
 public:
  struct Options {
    std::vector<std::string> addresses;
    std::string fingerprint;  // of the job's dataset
    const Clock* clock = nullptr;
    Metrics* metrics = nullptr;
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
    absl::Duration interval = absl::Seconds(1);
    absl::Duration timeout = absl::Seconds(1);
  };
  using Tell = std::function<void(std::vector<v1::DataReplicaStatus>)>;

  DataMonitor(Options options, Tell tell);
  ~DataMonitor();

 private:
  void Run();
  void AskAll();

  const Options options_;
  const Tell tell_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;  // kept, so that a name is not resolved for every question
  std::vector<prometheus::Gauge*> up_;
  DataReplicaStates states_;  // the thread's own

  Mutex mutex_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace millrace
