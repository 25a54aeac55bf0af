// Shard 0's process: from a job file to a job that runs.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/dataset_client.h"
#include "common/job_text.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "services/parameter_server/job_plan.h"
#include "services/parameter_server/parameter_server.h"
#include "services/parameter_server/reference_images.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

constexpr int kAttemptsPerLogLine = 5;

// Of valid options.
std::vector<std::string> DataAddresses(const ParameterServerOptions& options) {
  return ParseDataAddresses(options.data_addresses).value();
}

}  // namespace

CoordinatingServer::CoordinatingServer(ParameterServerOptions options, v1::JobSpec spec, CheckpointStore store,
                                       std::optional<CheckpointManifest> resumed,
                                       std::shared_ptr<const SigningKey> signing_key, const Clock& clock,
                                       ServiceContext& context)
    : ParameterServer(std::move(options), context),
      spec_(std::move(spec)),
      store_(std::move(store)),
      resumed_(std::move(resumed)),
      signing_key_(std::move(signing_key)),
      coordinator_({.num_shards = options_.num_shards,
                    .data_addresses = DataAddresses(options_),
                    .clock = &clock,
                    .metrics = &context.metrics(),
                    .limits = {.backup_workers = options_.backup_workers},
                    .ask_visits = [this](const v1::JobPlan& plan,
                                         const v1::VisitCheck& check) { visit_client_.Ask(plan, check); }}),
      service_(&coordinator_),
      version_source_(std::filesystem::path(options_.output_dir) / "models", spec_.model_name()),
      visit_client_(
          DataAddresses(options_), [this](const v1::VisitCheck& check) { coordinator_.VisitsExpected(check); },
          context.channel_credentials()) {}

CoordinatingServer::~CoordinatingServer() {
  JoinThread();
  coordinator_.Shutdown();  // or its thread might ask the visit client when that is gone
}

absl::Status CoordinatingServer::Start() {
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobPlan plan, MakePlan());
  data_monitor_.emplace(
      DataMonitor::Options{.addresses = DataAddresses(options_),
                           .fingerprint = plan.dataset().fingerprint(),
                           .clock = &RealClock(),
                           .metrics = &context_.metrics(),
                           .credentials = context_.channel_credentials()},
      [this](std::vector<v1::DataReplicaStatus> replicas) { coordinator_.DataReplicasSeen(std::move(replicas)); });
  if (options_.resume && !resumed_.has_value()) LogInfo("nothing to resume, the job starts afresh");
  MILLRACE_ASSIGN_OR_RETURN(RunStart start, StartFrom(resumed_, plan));
  const auto images = std::make_shared<ReferenceImages>(
      ReferenceImages::Options{.addresses = DataAddresses(options_), .credentials = context_.channel_credentials()},
      plan);
  const auto make_queue = [this, images](const v1::JobPlan& full_plan, const std::vector<v1::ShardInfo>& shards) {
    return std::make_unique<Checkpointer>(
        Checkpointer::Options{.plan = full_plan,
                              .keep = options_.keep_checkpoints,
                              .metrics = &context_.metrics(),
                              .signing_key = signing_key_,
                              .reference_images = [images] { return images->Get(); }},
        &store_, MakeGrpcShardFleet(full_plan, shards, context_.channel_credentials()), &coordinator_);
  };
  const auto find_start = [this, plan]() -> absl::StatusOr<RunStart> {
    MILLRACE_ASSIGN_OR_RETURN(const std::optional<CheckpointManifest> newest, store_.FindNewest());
    return StartFrom(newest, plan);
  };
  MILLRACE_RETURN_IF_ERROR(coordinator_.Begin(plan, std::move(start), make_queue, find_start));
  return Follow([this](const v1::RegisterShardRequest& request) { return coordinator_.RegisterShard(request); });
}

absl::StatusOr<RunStart> CoordinatingServer::StartFrom(const std::optional<CheckpointManifest>& checkpoint,
                                                       const v1::JobPlan& plan) const {
  if (!checkpoint.has_value()) return RunStart();
  MILLRACE_RETURN_IF_ERROR(CheckSameJob(*checkpoint, plan));
  const std::string directory = store_.Directory(checkpoint->version).string();
  LogInfo("resuming", {{"version", checkpoint->version}, {"directory", directory}});
  return RunStart{.version = checkpoint->version,
                  .checkpoint_dir = directory,
                  .validation = checkpoint->validation,
                  .fingerprint = checkpoint->fingerprint,
                  .visits = checkpoint->visits,
                  .synchronous_again = IsSynchronousAgain(checkpoint->plan.spec()),
                  .optimizer_sha256 = checkpoint->optimizer_sha256};
}

absl::StatusOr<v1::JobPlan> CoordinatingServer::MakePlan() {
  MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo dataset, AwaitDataset());
  MILLRACE_ASSIGN_OR_RETURN(v1::JobPlan plan, ResolveJobPlan(spec_, dataset));
  plan.set_output_dir(options_.output_dir);
  return plan;
}

absl::StatusOr<v1::DatasetInfo> CoordinatingServer::AwaitDataset() {
  v1::DescribeDatasetRequest request;
  request.set_seed(spec_.seed());
  request.set_validation_count(spec_.validation_count());
  int attempt = 0;
  return DescribeDataset(
      DataAddresses(options_), request, absl::InfiniteDuration(),
      [&](std::string_view waiting_for, absl::Duration time) {
        coordinator_.SetStarting(std::string(waiting_for));
        if (attempt++ % kAttemptsPerLogLine == 1) LogInfo("waiting", {{"for", waiting_for}});
        return Sleep(time);
      },
      context_.channel_credentials());
}

void CoordinatingServer::Drain(absl::Duration grace) {
  ParameterServer::Drain(grace);
  coordinator_.Shutdown();
}

std::string CoordinatingServer::StatusPage() {
  return absl::StrCat(FormatJobStatus(coordinator_.GetStatus()), "\n", host_.StatusLine(), "\n");
}

}  // namespace millrace
