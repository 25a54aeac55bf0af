// The parameter-server process whole. Shard 0 also hosts the coordinator: it reads the job, finds the data and the
// checkpoint to resume from, and makes the plan; the other shards get the plan from it.
#pragma once

#include <cstddef>
#include <cstdint>
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
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/checkpoint_store.h"
#include "services/parameter_server/coordinator.h"
#include "services/parameter_server/coordinator_service.h"
#include "services/parameter_server/shard_host.h"

namespace millrace {

struct ParameterServerOptions {
  uint32_t shard = 0;
  uint32_t num_shards = 1;
  std::string advertise;  // where others reach this process; empty: where it listens
  // Shard 0:
  std::string job_file;      // textproto of JobSpec
  std::string data_address;  // of the data service
  std::string output_dir;
  bool resume = false;
  size_t keep_checkpoints = 3;
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

  // On the starting thread: whatever it takes until the shard serves, and after. An error ends the process.
  virtual absl::Status Start() = 0;
  // The shard cannot apply a step and never will. On a gRPC thread, once.
  virtual void ShardBroken(const absl::Status& why) = 0;

  v1::RegisterShardRequest Registration() const;
  bool stopping() const;
  // Waits; false if the process is to stop.
  bool Sleep(absl::Duration time);
  // Stops and joins the thread; subclasses' destructors call it, since the thread uses their members.
  void JoinThread();

  const ParameterServerOptions options_;
  ServiceContext& context_;
  ShardHost host_;

 private:
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
                     std::optional<CheckpointManifest> resumed, const Clock& clock, ServiceContext& context);
  ~CoordinatingServer() override;

  std::vector<grpc::Service*> GrpcServices() override { return {&service_, host_.service()}; }
  std::string StatusPage() override;
  void Drain(absl::Duration grace) override;

 private:
  absl::Status Start() override;
  void ShardBroken(const absl::Status& why) override { coordinator_.Fail(std::string(why.message())); }
  // Asks until the data service answers. Errors other than its being away are final.
  absl::StatusOr<v1::DatasetInfo> AwaitDataset();
  absl::StatusOr<v1::JobPlan> MakePlan();

  const v1::JobSpec spec_;
  std::optional<CheckpointStore> store_;  // until the checkpointer has it
  const std::optional<CheckpointManifest> resumed_;
  Coordinator coordinator_;
  CoordinatorService service_;
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
  // Ends the process; the coordinator's job cannot go on without a fresh start of the shards.
  void ShardBroken(const absl::Status& why) override { context_.RequestStop(why); }
};

}  // namespace millrace
