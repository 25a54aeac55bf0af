// Shard 0's process: from a job file to a job that runs.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/data.grpc.pb.h"
#include "services/parameter_server/job_plan.h"
#include "services/parameter_server/parameter_server.h"
#include "services/parameter_server/status_page.h"

namespace millrace {
namespace {

constexpr absl::Duration kDescribeDeadline = absl::Seconds(2);
constexpr int kAttemptsPerLogLine = 5;

}  // namespace

CoordinatingServer::CoordinatingServer(ParameterServerOptions options, v1::JobSpec spec, CheckpointStore store,
                                       std::optional<CheckpointManifest> resumed, const Clock& clock,
                                       ServiceContext& context)
    : ParameterServer(std::move(options), context),
      spec_(std::move(spec)),
      store_(std::move(store)),
      resumed_(std::move(resumed)),
      coordinator_({.num_shards = options_.num_shards,
                    .data_address = options_.data_address,
                    .clock = &clock,
                    .metrics = &context.metrics()}),
      service_(&coordinator_) {}

CoordinatingServer::~CoordinatingServer() { JoinThread(); }

absl::Status CoordinatingServer::Start() {
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobPlan plan, MakePlan());
  if (options_.resume && !resumed_.has_value()) LogInfo("nothing to resume, the job starts afresh");
  const auto make_queue = [this](const v1::JobPlan& full_plan, const std::vector<v1::ShardInfo>& shards) {
    CheckpointStore store = *std::move(store_);
    return std::make_unique<Checkpointer>(Checkpointer::Options{.plan = full_plan,
                                                                .keep = options_.keep_checkpoints,
                                                                .metrics = &context_.metrics()},
                                          std::move(store), MakeGrpcShardFleet(full_plan, shards), &coordinator_);
  };
  std::vector<v1::Evaluation> validation;
  std::optional<RunFingerprint> fingerprint;
  if (resumed_.has_value()) {
    validation = resumed_->validation;
    fingerprint = resumed_->fingerprint;
  }
  MILLRACE_RETURN_IF_ERROR(coordinator_.Begin(plan, std::move(validation), make_queue, std::move(fingerprint)));
  MILLRACE_ASSIGN_OR_RETURN(const v1::RegisterShardResponse registered, coordinator_.RegisterShard(Registration()));
  const absl::Status served = host_.Serve(registered.plan(), registered.shard());
  if (!served.ok()) coordinator_.Fail(std::string(served.message()));
  return served;
}

absl::StatusOr<v1::JobPlan> CoordinatingServer::MakePlan() {
  MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo dataset, DescribeDataset());
  MILLRACE_ASSIGN_OR_RETURN(v1::JobPlan plan, ResolveJobPlan(spec_, dataset));
  plan.set_output_dir(options_.output_dir);
  if (!resumed_.has_value()) return plan;
  MILLRACE_RETURN_IF_ERROR(CheckSameJob(*resumed_, plan));
  plan.set_start_version(resumed_->version);
  plan.set_checkpoint_dir(store_->Directory(resumed_->version).string());
  LogInfo("resuming", {{"version", resumed_->version}, {"directory", plan.checkpoint_dir()}});
  return plan;
}

absl::StatusOr<v1::DatasetInfo> CoordinatingServer::DescribeDataset() {
  const auto stub = v1::DataService::NewStub(MakeChannel(options_.data_address));
  v1::DescribeDatasetRequest request;
  request.set_seed(spec_.seed());
  request.set_validation_count(spec_.validation_count());
  Backoff backoff;
  for (int attempt = 0;; ++attempt) {
    grpc::ClientContext context;
    SetDeadline(context, kDescribeDeadline);
    v1::DatasetInfo dataset;
    const absl::Status status = FromGrpcStatus(stub->DescribeDataset(&context, request, &dataset));
    if (status.ok()) return dataset;
    const std::string who = absl::StrCat("data service at ", options_.data_address);
    if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
      return absl::Status(status.code(), absl::StrCat(who, ": ", status.message()));
    }
    coordinator_.SetStarting(absl::StrCat(who, ": ", status.message()));
    if (attempt % kAttemptsPerLogLine == 1) {
      LogInfo("waiting for the data service", {{"address", options_.data_address}, {"reason", status.message()}});
    }
    if (!Sleep(backoff.Next())) return absl::CancelledError("shutting down");
  }
}

void CoordinatingServer::Drain(absl::Duration grace) {
  ParameterServer::Drain(grace);
  coordinator_.Shutdown();
}

std::string CoordinatingServer::StatusPage() {
  return absl::StrCat(RenderJobStatus(coordinator_.GetStatus()), "\n", host_.StatusLine(), "\n");
}

}  // namespace millrace
