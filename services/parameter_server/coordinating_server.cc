// Shard 0's process: from a job file to a job that runs.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/batch_client.h"
#include "common/job_text.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "services/parameter_server/job_plan.h"
#include "services/parameter_server/parameter_server.h"

namespace millrace {
namespace {

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
    return std::make_unique<Checkpointer>(
        Checkpointer::Options{.plan = full_plan, .keep = options_.keep_checkpoints, .metrics = &context_.metrics()},
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
  MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo dataset, AwaitDataset());
  MILLRACE_ASSIGN_OR_RETURN(v1::JobPlan plan, ResolveJobPlan(spec_, dataset));
  plan.set_output_dir(options_.output_dir);
  if (!resumed_.has_value()) return plan;
  MILLRACE_RETURN_IF_ERROR(CheckSameJob(*resumed_, plan));
  plan.set_start_version(resumed_->version);
  plan.set_checkpoint_dir(store_->Directory(resumed_->version).string());
  LogInfo("resuming", {{"version", resumed_->version}, {"directory", plan.checkpoint_dir()}});
  return plan;
}

absl::StatusOr<v1::DatasetInfo> CoordinatingServer::AwaitDataset() {
  v1::DescribeDatasetRequest request;
  request.set_seed(spec_.seed());
  request.set_validation_count(spec_.validation_count());
  int attempt = 0;
  return DescribeDataset(options_.data_address, request, absl::InfiniteDuration(),
                         [&](std::string_view waiting_for, absl::Duration time) {
                           coordinator_.SetStarting(std::string(waiting_for));
                           if (attempt++ % kAttemptsPerLogLine == 1) LogInfo("waiting", {{"for", waiting_for}});
                           return Sleep(time);
                         });
}

void CoordinatingServer::Drain(absl::Duration grace) {
  ParameterServer::Drain(grace);
  coordinator_.Shutdown();
}

std::string CoordinatingServer::StatusPage() {
  return absl::StrCat(FormatJobStatus(coordinator_.GetStatus()), "\n", host_.StatusLine(), "\n");
}

}  // namespace millrace
