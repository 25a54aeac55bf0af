// The parameter-server process whole. Shard 0 also hosts the coordinator: it reads the job, finds the data and the
// checkpoint to resume from, and makes the plan. Every shard, 0 too, tells the coordinator again and again that it
// lives, gets the plan of the newest run in answer, and serves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/service_runtime.h"
#include "common/signing.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/checkpoint_store.h"
#include "services/parameter_server/coordinator.h"
#include "services/parameter_server/coordinator_service.h"
#include "services/parameter_server/data_monitor.h"
#include "services/parameter_server/shard_host.h"
#include "services/parameter_server/version_source_service.h"
#include "services/parameter_server/visit_client.h"

namespace millrace {

struct ParameterServerOptions {
  uint32_t shard = 0;
  uint32_t num_shards = 1;
  std::string advertise;        // where others reach this process; empty: where it listens
  bool exit_when_done = false;  // end the process once the job is over; it goes on answering otherwise
  // Shard 0:
  std::string job_file;        // textproto of JobSpec
  std::string data_addresses;  // of the replicas of the data service, as ParseDataAddresses takes them
  std::string output_dir;
  bool resume = false;
  size_t keep_checkpoints = 3;
  uint32_t backup_workers = 0;
  std::string signing_key_file;  // PEM; empty: exported versions are not signed
  // Other shards:
  std::string coordinator_address;
};

// INVALID_ARGUMENT, naming the flag, for options that are missing, out of range or do not go together.
absl::Status ValidateParameterServerOptions(const ParameterServerOptions& options);

// What all shards have in common: a thread that starts the shard, and its end.
class ParameterServer : public Service {
 public:
  // For valid options. INVALID_ARGUMENT for a job that is no good; FAILED_PRECONDITION for an output directory with
  // another run in it; DATA_LOSS if no checkpoint in it can be read; errors of the file system.
  static absl::StatusOr<std::unique_ptr<Service>> Create(ParameterServerOptions options, const Clock& clock,
                                                         ServiceContext& context);
  ~ParameterServer() override;

  absl::Status Ready() override;
  absl::Status Started(const ListenAddresses& addresses) override;
  void Drain(absl::Duration grace) override;

 protected:
  ParameterServer(ParameterServerOptions options, ServiceContext& context);

  // On the process's own thread: whatever it takes until the shard serves, and after. An error ends the process.
  virtual absl::Status Start() = 0;

  using RegisterCall = std::function<absl::StatusOr<v1::RegisterShardResponse>(const v1::RegisterShardRequest&)>;
  // Registers by `call` several times a second and serves whatever run the answer is about, until the process is to
  // stop or the job is over and nobody may ask for more (OK), or the coordinator wants nothing of it (its error).
  absl::Status Follow(const RegisterCall& call);
  virtual absl::StatusOr<v1::JobStatus> GetJobStatus() = 0;
  bool stopping() const;
  // Waits; false if the process is to stop.
  bool Sleep(absl::Duration time);
  // Stops and joins the thread; subclasses' destructors call it, since the thread uses their members.
  void JoinThread();

  const ParameterServerOptions options_;
  ServiceContext& context_;
  ShardHost host_;

 private:
  v1::RegisterShardRequest Registration() const;
  // Asks for the process's end if the job is over; true if it did.
  bool EndWithJob();

  std::string address_;  // set before the thread starts
  const uint64_t incarnation_;
  mutable Mutex mutex_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Shard 0.
class CoordinatingServer final : public ParameterServer {
 public:
  CoordinatingServer(ParameterServerOptions options, v1::JobSpec spec, CheckpointStore store,
                     std::optional<CheckpointManifest> resumed, std::shared_ptr<const SigningKey> signing_key,
                     const Clock& clock, ServiceContext& context);
  ~CoordinatingServer() override;

  std::vector<grpc::Service*> GrpcServices() override { return {&service_, &version_source_, host_.service()}; }
  std::string StatusPage() override;
  void Drain(absl::Duration grace) override;

 private:
  absl::Status Start() override;
  absl::StatusOr<v1::JobStatus> GetJobStatus() override { return coordinator_.GetStatus(); }
  // Asks until the data service answers. Errors other than its being away are final.
  absl::StatusOr<v1::DatasetInfo> AwaitDataset();
  absl::StatusOr<v1::JobPlan> MakePlan();
  // From a checkpoint, or from the beginning without one. FAILED_PRECONDITION if it is not of this job.
  absl::StatusOr<RunStart> StartFrom(const std::optional<CheckpointManifest>& checkpoint,
                                     const v1::JobPlan& plan) const;

  const v1::JobSpec spec_;
  CheckpointStore store_;  // of the checkpointer while there is one
  const std::optional<CheckpointManifest> resumed_;
  const std::shared_ptr<const SigningKey> signing_key_;  // null: versions are not signed
  Coordinator coordinator_;
  CoordinatorService service_;
  VersionSourceService version_source_;
  VisitClient visit_client_;                 // of the coordinator, which uses it while it has work, and which it tells
  std::optional<DataMonitor> data_monitor_;  // tells the coordinator; once the plan is known
};

// Any other shard.
class FollowingServer final : public ParameterServer {
 public:
  FollowingServer(ParameterServerOptions options, ServiceContext& context)
      : ParameterServer(std::move(options), context) {}
  ~FollowingServer() override { JoinThread(); }

  std::vector<grpc::Service*> GrpcServices() override { return {host_.service()}; }
  std::string StatusPage() override;

 private:
  absl::Status Start() override;
  absl::StatusOr<v1::JobStatus> GetJobStatus() override;

  std::unique_ptr<v1::Coordinator::Stub> stub_;  // of the process's own thread; null while the coordinator is away
};

}  // namespace millrace
