#include "services/parameter_server/shard_host.h"

#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/model/replica.h"
#include "common/status_macros.h"
#include "google/protobuf/util/message_differencer.h"
#include "services/parameter_server/norm_client.h"

namespace millrace {
namespace {

// True if equal versions of the two plans have equal bits: they differ in nothing but what belongs to one run.
bool OfTheSameJob(v1::JobPlan a, v1::JobPlan b) {
  for (v1::JobPlan* plan : {&a, &b}) {
    plan->clear_run_id();
    plan->clear_start_version();
    plan->clear_checkpoint_dir();
  }
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

}  // namespace

void ShardHost::Serve(const v1::JobPlan& plan, const v1::ShardInfo& info) {
  service_.EndRun();
  std::shared_ptr<const Shard::Snapshot> kept;
  {
    std::shared_ptr<Shard> ended;  // freed before the next one is made
    MutexLock lock(&mutex_);
    ended = std::move(shard_);
    run_id_ = plan.run_id();
    broken_ = absl::OkStatus();
    const bool same = ended != nullptr && ended->range().begin == info.begin() && ended->range().end == info.end() &&
                      OfTheSameJob(ended->plan(), plan);
    if (same) kept = ended->SnapshotOf(plan.start_version());
  }
  const bool from_memory = kept != nullptr;
  absl::StatusOr<std::shared_ptr<Shard>> shard = MakeShard(plan, info, std::move(kept));
  if (!shard.ok()) return NoteBroken(plan.run_id(), shard.status());
  (*shard)->OnBroken([this, run_id = plan.run_id()](const absl::Status& why) { NoteBroken(run_id, why); });
  LogInfo("shard serves", {{"shard", info.shard()},
                           {"begin", info.begin()},
                           {"end", info.end()},
                           {"version", (*shard)->version()},
                           {"from", from_memory ? "memory" : plan.checkpoint_dir()}});
  service_.Serve(*shard, metrics_);
  MutexLock lock(&mutex_);
  shard_ = *std::move(shard);
}

absl::StatusOr<std::shared_ptr<Shard>> ShardHost::MakeShard(const v1::JobPlan& plan, const v1::ShardInfo& info,
                                                            std::shared_ptr<const Shard::Snapshot> kept) const {
  const Shard::Options options{
      .plan = plan, .info = info, .num_shards = num_shards_, .metrics = metrics_, .norms = MakeNorms(plan, info)};
  if (kept != nullptr) {
    MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<Shard> shard, Shard::Create(options, kept->weights.values));
    MILLRACE_RETURN_IF_ERROR(shard->Restore(std::move(kept)));
    return shard;
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<float> initial, InitialParameters(plan.network(), plan.spec().seed()));
  if (initial.size() != plan.parameter_count() || info.begin() > info.end() || info.end() > initial.size()) {
    return absl::FailedPreconditionError(absl::StrCat("the network has ", initial.size(), " parameters here, ",
                                                      plan.parameter_count(), " for the coordinator"));
  }
  MILLRACE_ASSIGN_OR_RETURN(
      std::shared_ptr<Shard> shard,
      Shard::Create(options, std::span(initial).subspan(info.begin(), info.end() - info.begin())));
  if (!plan.checkpoint_dir().empty()) MILLRACE_RETURN_IF_ERROR(shard->LoadCheckpoint(plan.checkpoint_dir()));
  return shard;
}

std::shared_ptr<NormExchange> ShardHost::MakeNorms(const v1::JobPlan& plan, const v1::ShardInfo& info) const {
  if (plan.spec().clip_norm() == 0 || num_shards_ == 1) return nullptr;
  if (info.shard() == 0) return std::make_shared<NormRendezvous>(num_shards_);
  return std::make_shared<NormClient>(NormClient::Options{
      .run_id = plan.run_id(), .shard = info.shard(), .address = coordinator_, .credentials = credentials_});
}

void ShardHost::NoteBroken(uint64_t run_id, const absl::Status& why) {
  MutexLock lock(&mutex_);
  if (run_id == run_id_) broken_ = why;
}

ShardHost::Health ShardHost::health() const {
  MutexLock lock(&mutex_);
  return {.run_id = run_id_, .version = shard_ == nullptr ? 0 : shard_->version(), .broken = broken_};
}

std::string ShardHost::StatusLine() const {
  MutexLock lock(&mutex_);
  if (!broken_.ok()) return absl::StrCat("broken: ", broken_.message());
  if (shard_ == nullptr) return "";
  return absl::StrCat("shard ", shard_->index(), ": version ", shard_->version(), ", waiting for ",
                      shard_->WaitingFor());
}

}  // namespace millrace
