#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "millrace/v1/job.pb.h"

namespace CLI {
class App;
}

namespace millrace {

// The flags that say how a network is trained, beyond its optimizer. Unset ones leave the job as it is.
struct TrainingFlags {
  std::optional<std::string> schedule;  // constant, step, cosine, one-cycle
  std::optional<uint64_t> warmup_steps;
  std::optional<double> schedule_gamma;
  std::optional<uint64_t> schedule_steps;
  std::optional<double> final_learning_rate;
  std::optional<double> clip_norm;
  std::optional<double> label_smoothing;
  std::optional<std::string> best_by;  // loss, accuracy
  std::optional<uint32_t> early_stopping_patience;
  std::optional<double> early_stopping_min_delta;
  std::optional<bool> serve_best;
};

// Declares the flags on `app` in `group`, bound to `flags`, which must outlive the parsing.
void AddTrainingFlags(CLI::App& app, TrainingFlags& flags, const std::string& group);

// Applies them to a job whose other settings are final. INVALID_ARGUMENT names the flag that does not fit.
absl::Status ApplyTrainingFlags(const TrainingFlags& flags, v1::JobSpec& spec);

// "constant", "cosine after 500 steps of warm-up": for the summary.
std::string DescribeSchedule(const v1::LearningRateSchedule& schedule);

}  // namespace millrace
