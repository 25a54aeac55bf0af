#include "services/parameter_server/shard_host.h"

#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/model/replica.h"
#include "common/status_macros.h"

namespace millrace {

absl::Status ShardHost::Serve(const v1::JobPlan& plan, const v1::ShardInfo& info) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<float> initial, InitialParameters(plan.network(), plan.spec().seed()));
  if (initial.size() != plan.parameter_count() || info.begin() > info.end() || info.end() > initial.size()) {
    return absl::FailedPreconditionError(absl::StrCat("the network has ", initial.size(), " parameters here, ",
                                                      plan.parameter_count(), " for the coordinator"));
  }
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<Shard> shard,
                            Shard::Create({.plan = plan, .info = info, .num_shards = num_shards_, .metrics = metrics_},
                                          std::span(initial).subspan(info.begin(), info.end() - info.begin())));
  if (!plan.checkpoint_dir().empty()) MILLRACE_RETURN_IF_ERROR(shard->LoadCheckpoint(plan.checkpoint_dir()));
  shard->OnBroken(on_broken_);
  LogInfo("shard serves", {{"shard", info.shard()},
                           {"begin", info.begin()},
                           {"end", info.end()},
                           {"version", shard->version()},
                           {"checkpoint", plan.checkpoint_dir()}});
  service_.Serve(shard.get(), metrics_);
  MutexLock lock(&mutex_);
  shard_ = std::move(shard);
  return absl::OkStatus();
}

std::string ShardHost::StatusLine() const {
  MutexLock lock(&mutex_);
  if (shard_ == nullptr) return "";
  return absl::StrCat("shard ", shard_->index(), ": version ", shard_->version(), ", waiting for ",
                      shard_->WaitingFor());
}

}  // namespace millrace
