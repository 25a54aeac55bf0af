#include "services/cli/summary.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/job_text.h"
#include "common/text_format.h"
#include "nlohmann/json.hpp"
#include "services/cli/training_flags.h"

namespace millrace {
namespace {

absl::string_view OptimizerName(v1::OptimizerKind kind) {
  switch (kind) {
    case v1::OPTIMIZER_KIND_SGD:
      return "sgd";
    case v1::OPTIMIZER_KIND_ADAM:
      return "adam";
    case v1::OPTIMIZER_KIND_ADAMW:
      return "adamw";
    default:
      return "unknown";
  }
}

std::string Plural(uint64_t count, absl::string_view noun) {
  return absl::StrCat(FormatCount(count), " ", noun, count == 1 ? "" : "s");
}

std::string AccuracyAndLoss(const v1::Evaluation& evaluation) {
  if (!evaluation.has_accuracy()) return absl::StrFormat("reconstruction error %.5f", evaluation.loss());
  return absl::StrFormat("accuracy %s, loss %.4f", FormatPercent(evaluation.accuracy()), evaluation.loss());
}

std::string DescribeJob(const v1::JobSpec& job) {
  std::string text =
      absl::StrFormat("%s, learning rate %g", OptimizerName(job.optimizer().kind()), job.optimizer().learning_rate());
  if (job.has_schedule()) absl::StrAppend(&text, " (", DescribeSchedule(job.schedule()), ")");
  if (job.optimizer().weight_decay() > 0)
    absl::StrAppendFormat(&text, ", weight decay %g", job.optimizer().weight_decay());
  if (job.clip_norm() > 0) absl::StrAppendFormat(&text, ", clip norm %g", job.clip_norm());
  if (job.label_smoothing() > 0) absl::StrAppendFormat(&text, ", label smoothing %g", job.label_smoothing());
  absl::StrAppend(&text, ", batch ", job.batch_size(), " in ", Plural(job.slots(), "slot"));
  return text;
}

// The version that is the best in validation, where it is not the last.
void AddBest(const v1::JobStatus& status, std::vector<std::pair<std::string, std::string>>& rows) {
  const v1::Evaluation& best = status.best();
  rows.emplace_back("best version", absl::StrFormat("%d, epoch %d: validation %s", best.version(), best.epoch(),
                                                    AccuracyAndLoss(best)));
  if (status.has_best_test()) rows.emplace_back("its test", AccuracyAndLoss(status.best_test()));
}

nlohmann::ordered_json BestJson(const v1::JobStatus& status) {
  if (!status.has_best()) return nullptr;
  nlohmann::ordered_json json = {{"version", status.best().version()}, {"epoch", status.best().epoch()},
                                 {"validation_accuracy", nullptr},     {"validation_loss", status.best().loss()},
                                 {"test_accuracy", nullptr},           {"test_loss", nullptr}};
  if (status.best().has_accuracy()) json["validation_accuracy"] = status.best().accuracy();
  if (status.has_best_test()) {
    if (status.best_test().has_accuracy()) json["test_accuracy"] = status.best_test().accuracy();
    json["test_loss"] = status.best_test().loss();
  }
  return json;
}

}  // namespace

double ImagesPerSecond(const v1::JobStatus& status) {
  return status.training_seconds() > 0 ? static_cast<double>(status.trained_samples()) / status.training_seconds() : 0;
}

std::string FormatSummary(const TrainSummary& summary) {
  const v1::JobStatus& status = summary.status;
  const v1::JobPlan& plan = status.plan();
  const v1::JobSpec& job = plan.spec();
  const v1::DatasetInfo& data = plan.dataset();
  std::vector<std::pair<std::string, std::string>> rows = {
      {"dataset", absl::StrFormat("%s (%s train, %s validation, %s test)", data.name(), FormatCount(data.train_count()),
                                  FormatCount(data.validation_count()), FormatCount(data.test_count()))},
      {"network", absl::StrFormat("%s, %s parameters", job.architecture(),
                                  FormatCount(plan.parameter_count() - plan.statistics_count()))},
      {"job", DescribeJob(job)},
      {"cluster", absl::StrCat(Plural(summary.workers, "worker"), ", ",
                               Plural(static_cast<uint64_t>(status.shards_size()), "shard"))},
      {"training",
       absl::StrFormat("%s%s, %s, %s images/s", Plural(status.epoch(), "epoch"),
                       status.stopped_early() ? absl::StrCat(" of ", job.epochs(), ", stopped early") : "",
                       Plural(status.version(), "step"), FormatCount(static_cast<uint64_t>(ImagesPerSecond(status))))},
  };
  if (status.validation_size() > 0) {
    rows.emplace_back("validation", AccuracyAndLoss(status.validation(status.validation_size() - 1)));
  }
  if (std::string visits = FormatVisits(status); !visits.empty()) rows.emplace_back("visits", std::move(visits));
  rows.emplace_back("test", AccuracyAndLoss(status.test()));
  if (status.has_best() && status.best().version() != status.version()) AddBest(status, rows);
  if (summary.served.has_value()) {
    const ServedResult& served = *summary.served;
    const std::string score = served.error.has_value() ? absl::StrFormat("reconstruction error %.5f", *served.error)
                                                       : absl::StrCat("accuracy ", FormatPercent(served.accuracy));
    rows.emplace_back("served",
                      absl::StrFormat("%s by version %d in %s, p50 %.2f ms, p99 %.2f ms", score, served.version,
                                      Plural(served.requests, "request"), served.p50_ms, served.p99_ms));
  }
  if (summary.recoveries > 0) {
    rows.emplace_back("recoveries",
                      absl::StrFormat("%d, %.1f s without a step", summary.recoveries, summary.seconds_lost));
  }
  rows.emplace_back("weights", absl::StrCat("sha256 ", status.weights_sha256()));
  rows.emplace_back("time", FormatClock(absl::Seconds(summary.wall_seconds)));
  rows.emplace_back("output", summary.out);
  return FormatTable(rows);
}

std::string SummaryJson(const TrainSummary& summary) {
  const v1::JobStatus& status = summary.status;
  nlohmann::ordered_json json = {
      {"steps", status.version()},
      {"epochs", status.epoch()},
      {"workers", summary.workers},
      {"shards", status.shards_size()},
      {"slots", status.plan().spec().slots()},
      {"test_accuracy", nullptr},
      {"test_loss", status.test().loss()},
      {"images_per_second", ImagesPerSecond(status)},
      {"wall_seconds", summary.wall_seconds},
      {"recoveries", summary.recoveries},
      {"seconds_lost", summary.seconds_lost},
      {"weights_sha256", status.weights_sha256()},
      {"optimizer_sha256", status.optimizer_sha256()},
      {"dataset", status.plan().dataset().name()},
      {"served", nullptr},
      {"best", BestJson(status)},
      {"stopped_early", status.stopped_early()},
      {"visit_mismatches", status.visit_mismatches()},
  };
  if (status.test().has_accuracy()) json["test_accuracy"] = status.test().accuracy();
  if (summary.served.has_value()) {
    const ServedResult& served = *summary.served;
    json["served"] = {{"version", served.version},
                      {"requests", served.requests},
                      {"accuracy", served.accuracy},
                      {"p50_ms", served.p50_ms},
                      {"p99_ms", served.p99_ms}};
    if (served.error.has_value()) {
      json["served"]["accuracy"] = nullptr;
      json["served"]["error"] = *served.error;
    }
  }
  return json.dump(2) + "\n";
}

}  // namespace millrace
