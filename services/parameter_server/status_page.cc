#include "services/parameter_server/status_page.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace millrace {
namespace {

void AppendEvaluation(const char* what, const v1::Evaluation& evaluation, std::string* page) {
  absl::StrAppendFormat(page, "%s after epoch %d (version %d): loss %.4f, accuracy %.4f over %d samples\n", what,
                        evaluation.epoch(), evaluation.version(), evaluation.loss(), evaluation.accuracy(),
                        evaluation.samples());
}

}  // namespace

std::string RenderJobStatus(const v1::JobStatus& status) {
  const std::string state = v1::JobStatus::State_Name(status.state());
  std::string page =
      absl::StrCat("state          ", absl::AsciiStrToLower(absl::StripPrefix(state, "STATE_")), "\n");
  if (!status.waiting_for().empty()) absl::StrAppend(&page, "waiting for    ", status.waiting_for(), "\n");
  if (!status.failure().empty()) absl::StrAppend(&page, "failure        ", status.failure(), "\n");
  if (!status.checkpoint_error().empty()) {
    absl::StrAppend(&page, "NOT SAVED      ", status.checkpoint_error(), "\n");
  }
  if (!status.has_plan()) return page;
  const v1::JobPlan& plan = status.plan();
  absl::StrAppendFormat(&page, "job            %s, network %s (%d parameters), dataset %s, seed %d\n",
                        plan.spec().model_name(), plan.spec().architecture(), plan.parameter_count(),
                        plan.dataset().name(), plan.spec().seed());
  absl::StrAppendFormat(&page, "step           %d of %d\nepoch          %d of %d\n", status.version(),
                        plan.total_steps(), status.epoch(), plan.spec().epochs());
  absl::StrAppendFormat(&page, "training       loss %.4f, accuracy %.4f, %.0f images/s\n", status.train_loss(),
                        status.train_accuracy(), status.images_per_second());
  absl::StrAppendFormat(&page, "checkpoint     version %d\nexported       version %d %s\n", status.committed_version(),
                        status.exported_version(), status.weights_sha256());
  absl::StrAppendFormat(&page, "leases         %d regranted, %d duplicate results, %d checksum mismatches\n",
                        status.regranted_leases(), status.duplicate_results(), status.checksum_mismatches());
  absl::StrAppend(&page, "\n");
  for (const v1::WorkerStatus& worker : status.workers()) {
    absl::StrAppendFormat(&page, "%s (process %d): %s, last heard %.1f s ago, %d samples\n", worker.worker(),
                          worker.process_id(), worker.doing(), worker.last_heard_seconds(), worker.samples());
  }
  for (const v1::ShardInfo& shard : status.shards()) {
    absl::StrAppendFormat(&page, "shard %d: elements [%d, %d) at %s\n", shard.shard(), shard.begin(), shard.end(),
                          shard.address().empty() ? "(not registered)" : shard.address());
  }
  absl::StrAppend(&page, "\n");
  for (const v1::Evaluation& evaluation : status.validation()) AppendEvaluation("validation", evaluation, &page);
  if (status.has_test()) AppendEvaluation("test", status.test(), &page);
  return page;
}

}  // namespace millrace
