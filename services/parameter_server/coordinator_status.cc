// How the job is doing, for people and for `millrace train`.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/networks.h"
#include "services/parameter_server/coordinator.h"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/model_selection.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

// Without a report for this long something is late, and the status says what.
constexpr absl::Duration kLate = absl::Seconds(1);
// A shard speaks several times a second.
constexpr absl::Duration kSilent = absl::Seconds(1);

}  // namespace

v1::JobStatus Coordinator::GetStatus() const {
  MutexLock lock(&mutex_);
  return StatusLocked();
}

void Coordinator::DataReplicasSeen(std::vector<v1::DataReplicaStatus> replicas) {
  MutexLock lock(&mutex_);
  data_replicas_ = std::move(replicas);
}

v1::JobStatus::State Coordinator::StateLocked() const {
  if (!failure_.empty()) return v1::JobStatus::STATE_FAILED;
  if (run_over_ || (!training() && recovering_since_.has_value())) return v1::JobStatus::STATE_RECOVERING;
  if (!training()) return v1::JobStatus::STATE_STARTING;
  if (ledger_->finished()) return unsettled_.empty() ? v1::JobStatus::STATE_DONE : v1::JobStatus::STATE_FINISHING;
  const std::optional<RoundId> round = ledger_->current();
  const bool evaluating = round.has_value() && !round->is_train();
  return evaluating ? v1::JobStatus::STATE_EVALUATING : v1::JobStatus::STATE_TRAINING;
}

std::string Coordinator::WaitingForLocked() const {
  const absl::Time now = options_.clock->Now();
  const std::string silent = FirstShard([&](const Registration& shard) { return now - shard.last_heard > kSilent; });
  switch (StateLocked()) {
    case v1::JobStatus::STATE_STARTING:
    case v1::JobStatus::STATE_RECOVERING:
      if (!begun_) return starting_;
      if (run_over_) return "the newest checkpoint to be found";
      for (uint32_t shard = 0; shard < options_.num_shards; ++shard) {
        if (!shards_.contains(shard)) return absl::StrCat("shard ", shard, " of ", options_.num_shards, " to register");
      }
      return absl::StrCat(
          "version ", plan_.start_version(), " to be served by ",
          FirstShard([&](const Registration& shard) { return shard.serving_run_id != plan_.run_id(); }));
    case v1::JobStatus::STATE_FINISHING:
      return absl::StrCat("checkpoint and export of version ", *unsettled_.begin(),
                          silent.empty() ? "" : absl::StrCat(" (", silent, ")"));
    case v1::JobStatus::STATE_TRAINING:
    case v1::JobStatus::STATE_EVALUATING: {
      if (now - last_progress_ <= kLate && !sessions_.empty()) return "";
      const std::string work = ledger_->WaitingFor(now);
      return silent.empty() ? work : absl::StrCat(silent, "; ", work);
    }
    default:
      return "";
  }
}

v1::JobStatus Coordinator::StatusLocked() const {
  v1::JobStatus status;
  status.set_state(StateLocked());
  status.set_waiting_for(WaitingForLocked());
  status.set_failure(failure_);
  status.set_checkpoint_error(commit_error_.empty() ? export_error_ : commit_error_);
  if (!begun_) return status;
  *status.mutable_plan() = plan_;
  for (const v1::ShardInfo& range : ranges_) {
    const auto registered = shards_.find(range.shard());
    *status.add_shards() = registered == shards_.end() ? range : registered->second.info;
  }
  status.mutable_data_replicas()->Assign(data_replicas_.begin(), data_replicas_.end());
  status.mutable_validation()->Assign(validation_.begin(), validation_.end());
  if (test_.has_value()) *status.mutable_test() = *test_;
  if (const v1::Evaluation* const best = BestOf(plan_.spec(), validation_); best != nullptr) {
    *status.mutable_best() = *best;
    const auto& best_test = test_.has_value() && test_->version() == best->version() ? test_ : best_test_;
    if (best_test.has_value()) *status.mutable_best_test() = *best_test;
  }
  status.set_committed_version(committed_version_);
  status.set_exported_version(exported_version_);
  status.set_weights_sha256(weights_sha256_);
  status.set_optimizer_sha256(optimizer_sha256_);
  status.set_train_loss(progress_.loss());
  if (Classifies(plan_.network())) status.set_train_accuracy(progress_.accuracy());
  status.set_images_per_second(progress_.images_per_second());
  status.set_trained_samples(progress_.samples());
  status.set_training_seconds(progress_.training_seconds());
  const absl::Time now = options_.clock->Now();
  if (first_grant_ != absl::InfiniteFuture()) {
    status.set_elapsed_seconds(absl::ToDoubleSeconds(std::min(now, over_) - first_grant_));
  }
  status.set_recovery_count(recovery_count_);
  status.mutable_recoveries()->Assign(recoveries_.begin(), recoveries_.end());
  if (recovering_since_.has_value()) {
    status.mutable_recoveries()->rbegin()->set_seconds(absl::ToDoubleSeconds(now - *recovering_since_));
  }
  const uint64_t idle = run_over_ ? recoveries_.back().version() : plan_.start_version();
  status.set_version(training() ? ledger_->version() : idle);
  status.set_epoch(EpochOf(plan_, status.version()));
  status.set_learning_rate(LearningRateAt(plan_, status.version()));
  const Ledger::Counters counters = training() ? ledger_->counters() : Ledger::Counters();
  status.set_regranted_leases(past_counters_.regranted_leases + counters.regranted_leases);
  status.set_duplicate_results(past_counters_.duplicate_results + counters.duplicate_results);
  status.set_checksum_mismatches(past_counters_.checksum_mismatches + counters.checksum_mismatches);
  status.mutable_visit_checks()->Assign(visits_.checks().begin(), visits_.checks().end());
  status.set_visit_mismatches(visits_.mismatches());
  if (!training()) return status;
  status.set_stopped_early(!IsFinalVersion(plan_, ledger_->version()) &&
                           IsLastVersion(plan_, ledger_->version(), validation_));
  for (const Ledger::WorkerView& view : ledger_->Workers()) {
    v1::WorkerStatus& worker = *status.add_workers();
    worker.set_worker(view.name);
    worker.set_doing(view.doing);
    worker.set_last_heard_seconds(absl::ToDoubleSeconds(now - view.last_heard));
    worker.set_samples(view.samples);
    const auto session = sessions_.find(view.id);
    if (session != sessions_.end()) worker.set_process_id(session->second.hello.process_id());
  }
  return status;
}

}  // namespace millrace
