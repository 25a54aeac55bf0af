#include "common/job_text.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/text_format.h"

namespace millrace {
namespace {

// Of the last epochs; the table should fit a screen.
constexpr int kEvaluationsShown = 5;

using Rows = std::vector<std::pair<std::string, std::string>>;

std::string Position(const v1::JobStatus& status) {
  const v1::JobPlan& plan = status.plan();
  const uint64_t epochs = plan.spec().epochs();
  const uint64_t current = std::min(status.epoch() + 1, epochs);
  return absl::StrCat("epoch ", current, "/", epochs, "  step ", FormatCount(status.version()), "/",
                      FormatCount(plan.total_steps()));
}

std::string ImagesPerSecond(const v1::JobStatus& status) {
  return absl::StrCat(FormatCount(static_cast<uint64_t>(std::max(status.images_per_second(), 0.0))), " images/s");
}

// The learning rate, where it changes.
std::string Rate(const v1::JobStatus& status) {
  if (!status.plan().spec().has_schedule()) return "";
  return absl::StrFormat("rate %.3g  ", status.learning_rate());
}

std::string FormatWorker(const v1::WorkerStatus& worker) {
  return absl::StrFormat("%s (process %d, %s samples, last heard %.1f s ago)",
                         worker.doing().empty() ? "idle" : worker.doing(), worker.process_id(),
                         FormatCount(worker.samples()), worker.last_heard_seconds());
}

// "loss 0.0571, accuracy 98.32 %"
std::string LossAndAccuracy(double loss, bool classifies, double accuracy) {
  std::string text = absl::StrFormat("loss %.4f", loss);
  if (classifies) absl::StrAppend(&text, ", accuracy ", FormatPercent(accuracy));
  return text;
}

std::string LossAndAccuracy(const v1::Evaluation& evaluation) {
  return LossAndAccuracy(evaluation.loss(), evaluation.has_accuracy(), evaluation.accuracy());
}

std::string FormatScore(const v1::Evaluation& evaluation) {
  return absl::StrFormat("%s of %s samples at step %s", LossAndAccuracy(evaluation), FormatCount(evaluation.samples()),
                         FormatCount(evaluation.version()));
}

void AddJob(const v1::JobStatus& status, Rows& rows) {
  const v1::JobPlan& plan = status.plan();
  rows.emplace_back(
      "job", absl::StrFormat("%s, network %s (%s parameters), dataset %s, seed %d", plan.spec().model_name(),
                             plan.spec().architecture(), FormatCount(plan.parameter_count() - plan.statistics_count()),
                             plan.dataset().name(), plan.spec().seed()));
  const std::string score = LossAndAccuracy(status.train_loss(), status.has_train_accuracy(), status.train_accuracy());
  rows.emplace_back("training", absl::StrCat(score, ", ", ImagesPerSecond(status),
                                             absl::StrFormat(", learning rate %.3g", status.learning_rate())));
  rows.emplace_back("checkpoint", status.committed_version() == 0
                                      ? "none yet"
                                      : absl::StrCat("step ", FormatCount(status.committed_version())));
  rows.emplace_back("servable", status.exported_version() == 0
                                    ? "none yet"
                                    : absl::StrCat("version ", status.exported_version(), ", weights sha256 ",
                                                   status.weights_sha256()));
  rows.emplace_back(
      "leases", absl::StrFormat("%d granted again, %d duplicate results, %d checksum mismatches",
                                status.regranted_leases(), status.duplicate_results(), status.checksum_mismatches()));
}

void AddRecoveries(const v1::JobStatus& status, Rows& rows) {
  if (status.recoveries().empty()) return;
  const v1::Recovery& last = *status.recoveries().rbegin();
  rows.emplace_back("recoveries", absl::StrFormat("%d; the last: %s, from step %s back to %s, no step for %.1f s",
                                                  status.recovery_count(), last.reason(), FormatCount(last.version()),
                                                  FormatCount(last.start_version()), last.seconds()));
}

void AddParts(const v1::JobStatus& status, const std::map<uint32_t, std::string>& shards, Rows& rows) {
  for (const v1::ShardInfo& shard : status.shards()) {
    std::string text = absl::StrFormat("parameters %d to %d at %s", shard.begin(), shard.end(),
                                       shard.address().empty() ? "(not registered)" : shard.address());
    if (const auto found = shards.find(shard.shard()); found != shards.end()) {
      absl::StrAppend(&text, ", ", found->second);
    }
    rows.emplace_back(absl::StrCat("shard ", shard.shard()), std::move(text));
  }
  for (const v1::WorkerStatus& worker : status.workers()) rows.emplace_back(worker.worker(), FormatWorker(worker));
}

void AddDataReplicas(const v1::JobStatus& status, Rows& rows) {
  for (int i = 0; i < status.data_replicas_size(); ++i) {
    const v1::DataReplicaStatus& replica = status.data_replicas(i);
    std::string name = "data";
    if (status.data_replicas_size() > 1) absl::StrAppend(&name, " ", i);
    const std::string state = FormatState(v1::DataReplicaStatus::State_Name(replica.state()));
    const bool up = replica.state() == v1::DataReplicaStatus::STATE_UP;
    rows.emplace_back(std::move(name),
                      up ? absl::StrCat(state, " at ", replica.address())
                         : absl::StrFormat("%s for %.0f s at %s: %s", absl::AsciiStrToUpper(state),
                                           replica.since_seconds(), replica.address(), replica.reason()));
  }
}

// "epoch 3: 55,000 samples, each once (digest 0123456789abcdef)"
std::string FormatVisitCheck(const v1::JobPlan& plan, const v1::VisitCheck& check) {
  const bool whole = check.end() - check.begin() == plan.steps_per_epoch();
  std::string text = absl::StrCat("epoch ", check.epoch() + 1);
  if (!whole) absl::StrAppend(&text, ", steps ", FormatCount(check.begin()), " to ", FormatCount(check.end()));
  absl::StrAppend(&text, ": ", FormatCount(check.samples()), " samples, ");
  if (check.expected_samples() == 0) return text + "not checked yet: the data service has not answered";
  if (check.samples() != check.expected_samples()) {
    return absl::StrCat(text, "NOT THE ", FormatCount(check.expected_samples()), " THAT THERE ARE");
  }
  if (check.visits() != check.expected_visits()) return text + "NOT EACH ONCE";
  return absl::StrFormat("%seach once (digest %016x)", text, check.visits());
}

void AddScores(const v1::JobStatus& status, Rows& rows) {
  for (int i = std::max(0, status.validation_size() - kEvaluationsShown); i < status.validation_size(); ++i) {
    rows.emplace_back(absl::StrCat("epoch ", status.validation(i).epoch()),
                      absl::StrCat("validation ", FormatScore(status.validation(i))));
  }
  if (status.has_best()) rows.emplace_back("best", absl::StrCat("validation ", FormatScore(status.best())));
  if (status.has_best_test()) rows.emplace_back("best's test", FormatScore(status.best_test()));
  if (status.stopped_early()) rows.emplace_back("end", FormatEarlyStop(status));
  if (status.has_test()) rows.emplace_back("test", FormatScore(status.test()));
}

}  // namespace

std::optional<absl::Duration> EstimateRemaining(const v1::JobStatus& status) {
  const v1::JobPlan& plan = status.plan();
  if (status.version() <= plan.start_version() || status.elapsed_seconds() <= 0) return std::nullopt;
  const double done = static_cast<double>(status.version() - plan.start_version());
  const double left = static_cast<double>(plan.total_steps() - std::min(status.version(), plan.total_steps()));
  return absl::Seconds(status.elapsed_seconds() / done * left);
}

std::string FormatProgress(const v1::JobStatus& status) {
  switch (status.state()) {
    case v1::JobStatus::STATE_TRAINING: {
      const std::optional<absl::Duration> remaining = EstimateRemaining(status);
      return absl::StrCat(Position(status), absl::StrFormat("  loss %.4f  ", status.train_loss()), Rate(status),
                          ImagesPerSecond(status), "  ETA ", FormatClock(remaining.value_or(absl::InfiniteDuration())));
    }
    case v1::JobStatus::STATE_EVALUATING:
      return absl::StrCat(Position(status), "  evaluating");
    case v1::JobStatus::STATE_FINISHING:
      return "writing the last checkpoint and the servable model";
    case v1::JobStatus::STATE_DONE:
      return "done";
    case v1::JobStatus::STATE_RECOVERING:
      return absl::StrCat(
          "going back from step ",
          FormatCount(status.recoveries().empty() ? status.version() : status.recoveries().rbegin()->version()),
          " to the newest checkpoint");
    case v1::JobStatus::STATE_FAILED:
      return absl::StrCat("failed: ", status.failure());
    default:
      return "starting";
  }
}

std::string FormatWait(const v1::JobStatus& status) {
  const bool has_position =
      status.state() == v1::JobStatus::STATE_TRAINING || status.state() == v1::JobStatus::STATE_EVALUATING;
  return absl::StrCat(has_position ? Position(status) : FormatProgress(status), "  waiting for ", status.waiting_for());
}

std::string FormatEvaluation(const v1::Evaluation& evaluation, uint32_t epochs) {
  return absl::StrFormat("epoch %d/%d done at step %s: validation %s", evaluation.epoch(), epochs,
                         FormatCount(evaluation.version()), LossAndAccuracy(evaluation));
}

std::string FormatEarlyStop(const v1::JobStatus& status) {
  const v1::EarlyStopping& rule = status.plan().spec().early_stopping();
  const std::string epochs =
      rule.patience() == 1 ? "the last epoch was" : absl::StrFormat("the last %d epochs were", rule.patience());
  return absl::StrFormat("stopped early: %s not better than those before%s; the best is epoch %d (version %s)", epochs,
                         rule.min_delta() > 0 ? absl::StrFormat(" by more than %g", rule.min_delta()) : "",
                         status.best().epoch(), FormatCount(status.best().version()));
}

std::string FormatVisits(const v1::JobStatus& status) {
  if (status.visit_checks().empty()) return "";
  std::string text = FormatVisitCheck(status.plan(), *status.visit_checks().rbegin());
  if (status.visit_mismatches() > 0) {
    absl::StrAppend(&text, "; CHECKS THAT DID NOT COME OUT EQUAL: ", status.visit_mismatches());
  }
  return text;
}

std::string FormatJobStatus(const v1::JobStatus& status, const std::map<uint32_t, std::string>& shards) {
  Rows rows = {{"state", FormatState(v1::JobStatus::State_Name(status.state()))},
               {"progress", FormatProgress(status)},
               {"waiting for", status.waiting_for().empty() ? "nothing" : status.waiting_for()}};
  if (!status.checkpoint_error().empty()) rows.emplace_back("NOT SAVED", status.checkpoint_error());
  if (status.has_plan()) AddJob(status, rows);
  AddRecoveries(status, rows);
  AddDataReplicas(status, rows);
  AddParts(status, shards, rows);
  if (std::string visits = FormatVisits(status); !visits.empty()) rows.emplace_back("visits", std::move(visits));
  AddScores(status, rows);
  return FormatTable(rows);
}

}  // namespace millrace
