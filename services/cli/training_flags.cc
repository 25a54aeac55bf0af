#include "services/cli/training_flags.h"

#include <array>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/limits.h"
#include "common/text_format.h"
#include "services/cli/enum_names.h"

namespace millrace {
namespace {

using Schedule = v1::LearningRateSchedule;

constexpr uint64_t kStepsMax = uint64_t{1} << 40;
constexpr double kDefaultGamma = 0.1;  // PyTorch's

constexpr std::array<Named<Schedule::Kind>, 4> kSchedules = {{
    {"constant", Schedule::KIND_CONSTANT},
    {"step", Schedule::KIND_STEP},
    {"cosine", Schedule::KIND_COSINE},
    {"one-cycle", Schedule::KIND_ONE_CYCLE},
}};
constexpr std::array<Named<v1::BestBy>, 2> kBestBy = {{
    {"loss", v1::BEST_BY_LOSS},
    {"accuracy", v1::BEST_BY_ACCURACY},
}};

absl::Status OnlyFor(absl::string_view flag, absl::string_view schedules) {
  return absl::InvalidArgumentError(absl::StrCat(flag, " is only for --schedule ", schedules));
}

absl::Status ApplySchedule(const TrainingFlags& flags, v1::JobSpec& spec) {
  Schedule& schedule = *spec.mutable_schedule();
  if (flags.schedule.has_value() && *flags.schedule != NameOf(kSchedules, schedule.kind())) {
    schedule.Clear();
    schedule.set_kind(ValueOf(kSchedules, *flags.schedule));
    if (schedule.kind() == Schedule::KIND_STEP) schedule.set_gamma(kDefaultGamma);
  }
  const bool falls = schedule.kind() == Schedule::KIND_COSINE || schedule.kind() == Schedule::KIND_ONE_CYCLE;
  if (flags.warmup_steps.has_value()) schedule.set_warmup_steps(*flags.warmup_steps);
  if (flags.schedule_gamma.has_value()) {
    if (schedule.kind() != Schedule::KIND_STEP) return OnlyFor("--schedule-gamma", "step");
    schedule.set_gamma(*flags.schedule_gamma);
  }
  if (flags.schedule_steps.has_value()) {
    if (schedule.kind() != Schedule::KIND_STEP) return OnlyFor("--schedule-steps", "step");
    schedule.set_steps(*flags.schedule_steps);
  }
  if (flags.final_learning_rate.has_value()) {
    if (!falls) return OnlyFor("--final-learning-rate", "cosine and one-cycle");
    schedule.set_final_learning_rate(*flags.final_learning_rate);
  }
  if (schedule.final_learning_rate() > spec.optimizer().learning_rate()) {
    return absl::InvalidArgumentError(absl::StrCat("--final-learning-rate ", schedule.final_learning_rate(),
                                                   " is over --learning-rate ", spec.optimizer().learning_rate()));
  }
  // One way to say it: a job that is resumed is compared field by field.
  if (schedule.kind() == Schedule::KIND_CONSTANT) schedule.clear_kind();
  if (schedule.ByteSizeLong() == 0) spec.clear_schedule();
  return absl::OkStatus();
}

absl::Status ApplySelection(const TrainingFlags& flags, v1::JobSpec& spec) {
  if (flags.best_by.has_value()) spec.set_best_by(ValueOf(kBestBy, *flags.best_by));
  if (flags.early_stopping_patience.has_value()) {
    spec.mutable_early_stopping()->set_patience(*flags.early_stopping_patience);
  }
  if (flags.early_stopping_min_delta.has_value()) {
    if (spec.early_stopping().patience() == 0) {
      return absl::InvalidArgumentError("--early-stopping-min-delta needs --early-stopping-patience");
    }
    spec.mutable_early_stopping()->set_min_delta(*flags.early_stopping_min_delta);
  }
  if (flags.serve_best.has_value()) spec.set_publish_best(*flags.serve_best);
  if (spec.validation_count() > 0) return absl::OkStatus();
  if (spec.early_stopping().patience() > 0) {
    return absl::InvalidArgumentError("--early-stopping-patience needs validation samples: --validation-count is 0");
  }
  if (spec.publish_best()) {
    return absl::InvalidArgumentError("--serve-best needs validation samples: --validation-count is 0");
  }
  return absl::OkStatus();
}

}  // namespace

void AddTrainingFlags(CLI::App& app, TrainingFlags& flags, const std::string& group) {
  app.add_option(
         "--schedule", flags.schedule,
         "of the learning rate: constant; step: times gamma every so many steps; cosine: down to the final rate "
         "by half a cosine; one-cycle: up from a 25th, then down")
      ->group(group)
      ->default_str("constant")
      ->check(CLI::IsMember(NamesOf(kSchedules)));
  app.add_option("--warmup-steps", flags.warmup_steps,
                 "steps in which the rate grows to --learning-rate; default 0, for one-cycle three tenths of the job")
      ->group(group)
      ->check(CLI::Range(uint64_t{0}, kStepsMax));
  app.add_option("--schedule-gamma", flags.schedule_gamma, "step: what the rate is multiplied by")
      ->group(group)
      ->default_str("0.1")
      ->check(CLI::Range(1e-12, 1.0));
  app.add_option("--schedule-steps", flags.schedule_steps,
                 "step: steps from one multiplication to the next; default a third of the job")
      ->group(group)
      ->check(CLI::Range(uint64_t{1}, kStepsMax));
  app.add_option("--final-learning-rate", flags.final_learning_rate,
                 "cosine: default 0; one-cycle: default a 250,000th of --learning-rate")
      ->group(group)
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--clip-norm", flags.clip_norm,
                 "gradients of a larger norm, over all parameters, are scaled down to it")
      ->group(group)
      ->default_str("0: never")
      ->check(CLI::Range(0.0, 1e12));
  app.add_option("--label-smoothing", flags.label_smoothing, "share of the training target that all classes get alike")
      ->group(group)
      ->default_str("0")
      ->check(CLI::Range(0.0, 0.999'999));
  app.add_option("--best-by", flags.best_by, "which version is the best in validation: by loss or accuracy")
      ->group(group)
      ->default_str("loss")
      ->check(CLI::IsMember(NamesOf(kBestBy)));
  app.add_option("--early-stopping-patience", flags.early_stopping_patience,
                 "stop after so many epochs in a row that are no better than the best")
      ->group(group)
      ->default_str("0: never")
      ->check(CLI::Range(0u, kEpochsMax));
  app.add_option("--early-stopping-min-delta", flags.early_stopping_min_delta, "how much better they must be")
      ->group(group)
      ->default_str("0")
      ->check(CLI::Range(0.0, 1e12));
  app.add_flag_function(
         "--serve-best", [&flags](int64_t count) { flags.serve_best = count > 0; },
         "serve only versions that are the best in validation so far")
      ->group(group);
}

absl::Status ApplyTrainingFlags(const TrainingFlags& flags, v1::JobSpec& spec) {
  if (absl::Status status = ApplySchedule(flags, spec); !status.ok()) return status;
  if (flags.clip_norm.has_value()) spec.set_clip_norm(*flags.clip_norm);
  if (flags.label_smoothing.has_value()) spec.set_label_smoothing(*flags.label_smoothing);
  return ApplySelection(flags, spec);
}

std::string DescribeSchedule(const Schedule& schedule) {
  std::string text(NameOf(kSchedules, schedule.kind()));
  if (schedule.warmup_steps() > 0) {
    absl::StrAppend(&text, " after ", FormatCount(schedule.warmup_steps()), " steps of warm-up");
  }
  return text;
}

}  // namespace millrace
