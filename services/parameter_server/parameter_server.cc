#include "services/parameter_server/parameter_server.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/dataset_client.h"
#include "common/files.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "services/parameter_server/job_plan.h"

namespace millrace {
namespace {

constexpr size_t kJobFileBytesMax = 1 << 20;
// Also the longest that a shard goes on with a run that is over.
constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(200);
constexpr absl::Duration kRetryMax = absl::Milliseconds(500);
constexpr int kAttemptsPerLogLine = 20;
// For the other shards, and whoever watches the job, to learn from shard 0 that it is over.
constexpr absl::Duration kFarewell = absl::Seconds(3);

// The coordinator has understood, and a second try would not please it better. A connection that breaks has many codes.
bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsAborted(status) || absl::IsFailedPrecondition(status) ||
         absl::IsUnimplemented(status) || absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
}

absl::StatusOr<v1::JobSpec> ReadJob(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kJobFileBytesMax);
  if (!text.ok()) return absl::Status(text.status().code(), absl::StrCat("--job: ", text.status().message()));
  absl::StatusOr<v1::JobSpec> spec = ParseJobSpec(*text);
  if (spec.ok()) {
    if (const absl::Status valid = ValidateJobSpec(*spec); !valid.ok()) spec = valid;
  }
  if (!spec.ok()) return absl::Status(spec.status().code(), absl::StrCat(path, ": ", spec.status().message()));
  return spec;
}

absl::StatusOr<std::unique_ptr<Service>> CreateCoordinating(ParameterServerOptions options, const Clock& clock,
                                                            ServiceContext& context) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec spec, ReadJob(options.job_file));
  std::error_code error;
  options.output_dir = std::filesystem::absolute(options.output_dir, error).lexically_normal().string();
  MILLRACE_ASSIGN_OR_RETURN(CheckpointStore store, CheckpointStore::Open(options.output_dir));
  std::optional<CheckpointManifest> resumed;
  if (options.resume) {
    MILLRACE_ASSIGN_OR_RETURN(resumed, store.FindNewest());
  } else if (store.HoldsResults(spec.model_name())) {
    return absl::FailedPreconditionError(
        absl::StrCat("--output ", options.output_dir,
                     " holds checkpoints or models already; go on with --resume, or name another directory"));
  }
  std::shared_ptr<const SigningKey> signing_key;
  if (!options.signing_key_file.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(SigningKey key, SigningKey::Read(options.signing_key_file));
    signing_key = std::make_shared<const SigningKey>(std::move(key));
  }
  return std::make_unique<CoordinatingServer>(std::move(options), spec, std::move(store), std::move(resumed),
                                              std::move(signing_key), clock, context);
}

}  // namespace

absl::Status ValidateParameterServerOptions(const ParameterServerOptions& options) {
  if (options.num_shards == 0 || options.num_shards > kShardsMax) {
    return absl::InvalidArgumentError(absl::StrCat("--num-shards ", options.num_shards, " must be 1 to ", kShardsMax));
  }
  if (options.shard >= options.num_shards) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shard ", options.shard, " must be below --num-shards ", options.num_shards));
  }
  if (options.shard > 0) {
    if (options.coordinator_address.empty()) {
      return absl::InvalidArgumentError("--coordinator is missing: every shard but 0 needs it");
    }
    return absl::OkStatus();
  }
  for (const auto& [flag, value] : {std::pair("--job", &options.job_file), std::pair("--data", &options.data_addresses),
                                    std::pair("--output", &options.output_dir)}) {
    if (value->empty()) return absl::InvalidArgumentError(absl::StrCat(flag, " is missing: shard 0 needs it"));
  }
  if (const absl::Status data = ParseDataAddresses(options.data_addresses).status(); !data.ok()) {
    return absl::Status(data.code(), absl::StrCat("--data: ", data.message()));
  }
  if (options.keep_checkpoints == 0) return absl::InvalidArgumentError("--keep-checkpoints must be at least 1");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Service>> ParameterServer::Create(ParameterServerOptions options, const Clock& clock,
                                                                 ServiceContext& context) {
  if (options.shard == 0) return CreateCoordinating(std::move(options), clock, context);
  return std::make_unique<FollowingServer>(std::move(options), context);
}

ParameterServer::ParameterServer(ParameterServerOptions options, ServiceContext& context)
    : options_(std::move(options)),
      context_(context),
      host_(options_.num_shards, options_.coordinator_address, context.channel_credentials(), &context.metrics()),
      incarnation_(RandomSeed()) {}

ParameterServer::~ParameterServer() { JoinThread(); }

void ParameterServer::JoinThread() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status ParameterServer::Ready() {
  if (stopping()) return absl::UnavailableError("shutting down");
  if (!host_.serving()) return absl::UnavailableError("the shard waits for the job's plan");
  return absl::OkStatus();
}

absl::Status ParameterServer::Started(const ListenAddresses& addresses) {
  address_ = options_.advertise.empty() ? addresses.grpc : options_.advertise;
  thread_ = std::thread([this] {
    const absl::Status status = Start();
    if (!status.ok() && !stopping()) context_.RequestStop(status);
  });
  return absl::OkStatus();
}

void ParameterServer::Drain(absl::Duration /*grace*/) {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.SignalAll();
  }
  host_.Close();
}

absl::Status ParameterServer::Follow(const RegisterCall& call) {
  Backoff backoff(kHeartbeatInterval, kRetryMax);
  for (int attempt = 0;;) {
    const absl::StatusOr<v1::RegisterShardResponse> registered = call(Registration());
    if (registered.ok()) {
      attempt = 0;
      backoff.Reset();
      const bool known = registered->plan().run_id() == host_.health().run_id;
      // Served or not, the coordinator is told at once.
      if (!known) host_.Serve(registered->plan(), registered->shard());
      if (known && (EndWithJob() || !Sleep(kHeartbeatInterval))) return absl::OkStatus();
      continue;
    }
    const absl::Status& status = registered.status();
    if (IsRefusal(status)) return status;
    if (attempt++ % kAttemptsPerLogLine == 1) LogInfo("waiting for the coordinator", {{"reason", status.message()}});
    if (!Sleep(backoff.Next())) return absl::OkStatus();
  }
}

bool ParameterServer::EndWithJob() {
  if (!options_.exit_when_done) return false;
  const absl::StatusOr<v1::JobStatus> job = GetJobStatus();
  const bool failed = job.ok() && job->state() == v1::JobStatus::STATE_FAILED;
  if (!failed && !(job.ok() && job->state() == v1::JobStatus::STATE_DONE)) return false;
  if (options_.shard == 0) {
    if (job->workers_size() > 0) return false;  // they are told by their connections
    if (!Sleep(kFarewell)) return true;
  }
  LogInfo("the job is over");
  context_.RequestStop(failed ? absl::AbortedError(absl::StrCat("the job failed: ", job->failure()))
                              : absl::OkStatus());
  return true;
}

v1::RegisterShardRequest ParameterServer::Registration() const {
  const ShardHost::Health health = host_.health();
  v1::RegisterShardRequest request;
  request.set_shard(options_.shard);
  request.set_num_shards(options_.num_shards);
  request.set_address(address_);
  request.set_incarnation(incarnation_);
  request.set_serving_run_id(health.run_id);
  request.set_version(health.version);
  request.set_broken(std::string(health.broken.message()));
  return request;
}

bool ParameterServer::stopping() const {
  MutexLock lock(&mutex_);
  return stopping_;
}

bool ParameterServer::Sleep(absl::Duration time) {
  MutexLock lock(&mutex_);
  const absl::Time until = absl::Now() + time;
  while (!stopping_ && absl::Now() < until) stop_.WaitWithTimeout(&mutex_, until - absl::Now());
  return !stopping_;
}

}  // namespace millrace
