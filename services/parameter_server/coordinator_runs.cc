// The shards, and one run after the other: how a job begins, and how it goes back when a shard has lost its weights.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/planted_bug.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "common/tensor/flat_layout.h"
#include "services/parameter_server/coordinator.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

constexpr size_t kRecoveriesShown = 16;
constexpr size_t kReplacedMax = 16;
// A shard that breaks so often at one version, with no step in between, will do so for ever.
constexpr int kBrokenMax = 3;

}  // namespace

absl::Status Coordinator::Begin(v1::JobPlan plan, RunStart start, MakeQueue make_queue, FindStart find_start) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<ElementRange> ranges,
                            ShardRanges(plan.parameter_count(), options_.num_shards));
  MutexLock lock(&mutex_);
  plan_ = std::move(plan);
  make_queue_ = std::move(make_queue);
  find_start_ = std::move(find_start);
  for (const ElementRange& range : ranges) {
    v1::ShardInfo& info = ranges_.emplace_back();
    info.set_shard(static_cast<uint32_t>(ranges_.size() - 1));
    info.set_begin(range.begin);
    info.set_end(range.end);
  }
  resumed_fingerprint_ = start.fingerprint;
  PlanRun(std::move(start));
  begun_ = true;
  return absl::OkStatus();
}

void Coordinator::PlanRun(RunStart start) {
  plan_.set_run_id(RandomSeed());
  plan_.set_start_version(start.version);
  plan_.set_checkpoint_dir(std::move(start.checkpoint_dir));
  synchronous_again_ |= start.synchronous_again;
  if (synchronous_again_) {
    plan_.mutable_spec()->mutable_asynchrony()->set_staleness(0);
    plan_.mutable_spec()->mutable_asynchrony()->set_unbounded(false);
  }
  divergence_ = {};
  visits_.BeginRun(plan_, start.visits);
  validation_ = std::move(start.validation);
  committed_version_ = start.version;
  recorder_.Begin(start.version);
  optimizer_sha256_ = std::move(start.optimizer_sha256);
}

// --- Shards ---

absl::Status Coordinator::CheckShard(const v1::RegisterShardRequest& request) const {
  if (!begun_) return absl::UnavailableError(absl::StrCat("the job is starting: waiting for ", starting_));
  if (request.num_shards() != options_.num_shards || request.shard() >= options_.num_shards) {
    return absl::InvalidArgumentError(absl::StrCat("shard ", request.shard(), " of ", request.num_shards(),
                                                   " has no place in a job of ", options_.num_shards, " shards"));
  }
  if (request.address().empty()) return absl::InvalidArgumentError("a shard must say where it can be reached");
  const auto known = shards_.find(request.shard());
  if (known == shards_.end()) return absl::OkStatus();
  const auto& replaced = known->second.replaced;
  if (std::find(replaced.begin(), replaced.end(), request.incarnation()) == replaced.end()) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("another process at ", known->second.info.address(),
                                         " has taken the place of this one as shard ", request.shard()));
}

absl::StatusOr<v1::RegisterShardResponse> Coordinator::RegisterShard(const v1::RegisterShardRequest& request) {
  MutexLock lock(&mutex_);
  MILLRACE_RETURN_IF_ERROR(CheckShard(request));
  const auto [entry, first] = shards_.try_emplace(request.shard());
  Registration& shard = entry->second;
  const bool restarted =
      !first && shard.incarnation != request.incarnation() && kPlantedBug != PlantedBug::kStaleIncarnation;
  if (restarted) {
    shard.replaced.push_back(shard.incarnation);
    if (shard.replaced.size() > kReplacedMax) shard.replaced.pop_front();
  }
  if (first || restarted) LogInfo("shard registered", {{"shard", request.shard()}, {"address", request.address()}});
  shard.incarnation = request.incarnation();
  shard.info = ranges_[request.shard()];
  shard.info.set_address(request.address());
  shard.serving_run_id = request.broken().empty() ? request.serving_run_id() : 0;
  shard.last_heard = options_.clock->Now();

  if (restarted && training()) EndRun(absl::StrCat("shard ", request.shard(), " was restarted"));
  if (!request.broken().empty() && request.serving_run_id() == plan_.run_id()) ShardBroke(request);
  if (run_over_) return absl::UnavailableError("the job goes back to its newest checkpoint");
  StartTrainingIfServed();
  v1::RegisterShardResponse response;
  *response.mutable_plan() = plan_;
  *response.mutable_shard() = shard.info;
  return response;
}

void Coordinator::ShardBroke(const v1::RegisterShardRequest& request) {
  if (run_over_ || !failure_.empty() || over_ != absl::InfiniteFuture()) return;
  const uint64_t version = std::max(request.version(), plan_.start_version());
  broken_count_ = version == broken_version_ ? broken_count_ + 1 : 1;
  broken_version_ = version;
  const std::string reason = absl::StrCat("shard ", request.shard(), " broke: ", request.broken());
  if (broken_count_ < kBrokenMax) return EndRun(reason);
  FailLocked(absl::StrCat(reason, " (", broken_count_, " times in a row)"));
}

std::string Coordinator::FirstShard(const std::function<bool(const Registration&)>& late) const {
  for (const auto& [shard, registration] : shards_) {
    if (!late(registration)) continue;
    return absl::StrFormat("shard %d at %s, last heard %.1f s ago", shard, registration.info.address(),
                           absl::ToDoubleSeconds(options_.clock->Now() - registration.last_heard));
  }
  return "";
}

// --- Runs ---

void Coordinator::StartTrainingIfServed() {
  if (training() || !failure_.empty() || shards_.size() < options_.num_shards) return;
  for (const auto& [shard, registration] : shards_) {
    if (registration.serving_run_id != plan_.run_id()) return;
  }
  for (const auto& [shard, registration] : shards_) ranges_[shard] = registration.info;
  queue_ = make_queue_(plan_, ranges_);
  ledger_ = std::make_unique<Ledger>(plan_, options_.limits, validation_);
  last_progress_ = options_.clock->Now();
  LogInfo("training begins", {{"start_version", plan_.start_version()},
                              {"total_steps", plan_.total_steps()},
                              {"steps_per_epoch", plan_.steps_per_epoch()},
                              {"parameters", plan_.parameter_count()},
                              {"slots", plan_.spec().slots()},
                              {"shards", options_.num_shards}});
  if (IsEpochEnd(plan_, plan_.start_version()))
    ExportUnlessEvaluated(plan_.start_version(), FirstRound(plan_, validation_));
  for (const auto& [id, session] : sessions_) Welcome(id, session);
  FinishIfOver();
}

void Coordinator::EndRun(std::string reason) {
  if (run_over_ || !failure_.empty() || over_ != absl::InfiniteFuture()) return;
  const absl::Time now = options_.clock->Now();
  run_over_ = true;
  ++recovery_count_;
  v1::Recovery& recovery = recoveries_.emplace_back();
  recovery.set_version(training() ? ledger_->version() : plan_.start_version());
  recovery.set_reason(std::move(reason));
  if (recoveries_.size() > kRecoveriesShown) recoveries_.pop_front();
  LogWarning("THE JOB GOES BACK to its newest checkpoint",
             {{"reason", recovery.reason()}, {"version", recovery.version()}, {"committed", committed_version_}});
  // One recovery may follow another before there was any progress.
  if (!recovering_since_.has_value()) recovering_since_ = training() ? last_round_ : now;
  if (queue_ != nullptr) queue_->Stop();
  for (const auto& [id, session] : std::exchange(sessions_, {})) {
    session.connection->Close(absl::UnavailableError(absl::StrCat("the run is over: ", recovery.reason())));
  }
  if (!training()) return;
  past_counters_.regranted_leases += ledger_->counters().regranted_leases;
  past_counters_.duplicate_results += ledger_->counters().duplicate_results;
  past_counters_.checksum_mismatches += ledger_->counters().checksum_mismatches;
  ledger_.reset();
}

void Coordinator::PrepareRun() {
  std::unique_ptr<CheckpointQueue> queue;
  FindStart find_start;
  {
    MutexLock lock(&mutex_);
    if (!run_over_ || shut_down_) return;
    queue = std::move(queue_);
    find_start = find_start_;
  }
  // Its thread may be waiting for our lock, or about to commit one more version: that one counts.
  queue.reset();
  absl::StatusOr<RunStart> start = find_start();
  MutexLock lock(&mutex_);
  run_over_ = false;
  if (!start.ok()) return FailLocked(absl::StrCat("the job cannot go back: ", start.status().message()));
  PlanRun(*std::move(start));
  v1::Recovery& recovery = recoveries_.back();
  recovery.set_start_version(plan_.start_version());
  metrics_.CountRecovery(recovery.version() - std::min(recovery.version(), plan_.start_version()));
  LogInfo("the next run", {{"start_version", plan_.start_version()}, {"reason", recovery.reason()}});
  progress_.Rewind();
  test_.reset();
  best_test_.reset();
  unsettled_.clear();
  first_grant_ = absl::InfiniteFuture();
}

void Coordinator::NoteProgress() {
  const absl::Time now = options_.clock->Now();
  last_progress_ = last_round_ = now;
  if (!recovering_since_.has_value()) return;
  const double seconds = absl::ToDoubleSeconds(now - *std::exchange(recovering_since_, std::nullopt));
  recoveries_.back().set_seconds(seconds);
  metrics_.ObserveRecovery(seconds);
  LogInfo("recovered", {{"reason", recoveries_.back().reason()},
                        {"from_version", recoveries_.back().version()},
                        {"start_version", recoveries_.back().start_version()},
                        {"seconds", seconds}});
}

}  // namespace millrace
