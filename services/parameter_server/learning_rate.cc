#include "services/parameter_server/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace {
namespace {

using Schedule = v1::LearningRateSchedule;

// PyTorch's defaults of OneCycleLR.
constexpr double kOneCycleRise = 0.3;      // of the job
constexpr double kOneCycleInitial = 25;    // the rate begins with this part of the highest
constexpr double kOneCycleFinal = 10'000;  // and ends with this part of the initial one

absl::Status NotUsed(absl::string_view field, absl::string_view kind) {
  return absl::InvalidArgumentError(absl::StrCat("schedule.", field, " is only for ", kind));
}

// From `begin` to `end` along half a cosine; `part` from 0 to 1.
double Anneal(double begin, double end, double part) {
  return end + (begin - end) / 2 * (1 + std::cos(std::numbers::pi * part));
}

double StepRate(const Schedule& schedule, double rate, uint64_t step, uint64_t steps) {
  const uint64_t every = schedule.steps() > 0 ? schedule.steps() : (steps + 2) / 3;
  return rate * std::pow(schedule.gamma(), static_cast<double>(step / every));
}

double OneCycleRate(const Schedule& schedule, double rate, uint64_t step, uint64_t steps) {
  const double initial = rate / kOneCycleInitial;
  const double last = schedule.has_final_learning_rate() ? schedule.final_learning_rate() : initial / kOneCycleFinal;
  const double now = static_cast<double>(step);
  const double top = schedule.warmup_steps() > 0 ? static_cast<double>(schedule.warmup_steps())
                                                 : kOneCycleRise * static_cast<double>(steps) - 1;
  if (now <= top) return top > 0 ? Anneal(initial, rate, now / top) : rate;
  return Anneal(rate, last, (now - top) / (static_cast<double>(steps - 1) - top));
}

}  // namespace

absl::Status CheckSchedule(const Schedule& schedule, double learning_rate) {
  const bool step = schedule.kind() == Schedule::KIND_STEP;
  switch (schedule.kind()) {
    case Schedule::KIND_UNSPECIFIED:
    case Schedule::KIND_CONSTANT:
      if (schedule.has_final_learning_rate()) return NotUsed("final_learning_rate", "COSINE and ONE_CYCLE");
      break;
    case Schedule::KIND_STEP:
      if (schedule.has_final_learning_rate()) return NotUsed("final_learning_rate", "COSINE and ONE_CYCLE");
      if (!(schedule.gamma() > 0 && schedule.gamma() <= 1)) {
        return absl::InvalidArgumentError(
            absl::StrCat("schedule.gamma ", schedule.gamma(), " must be over 0 and at most 1"));
      }
      break;
    case Schedule::KIND_COSINE:
    case Schedule::KIND_ONE_CYCLE:
      if (!(schedule.final_learning_rate() >= 0 && schedule.final_learning_rate() <= learning_rate)) {
        return absl::InvalidArgumentError(absl::StrCat("schedule.final_learning_rate ", schedule.final_learning_rate(),
                                                       " must be at least 0 and at most the learning rate ",
                                                       learning_rate));
      }
      break;
    default:
      return absl::InvalidArgumentError("schedule.kind is unknown; known: CONSTANT, STEP, COSINE, ONE_CYCLE");
  }
  if (!step && schedule.gamma() != 0) return NotUsed("gamma", "STEP");
  if (!step && schedule.steps() != 0) return NotUsed("steps", "STEP");
  return absl::OkStatus();
}

bool DependsOnTotalSteps(const Schedule& schedule) {
  return schedule.kind() == Schedule::KIND_COSINE || schedule.kind() == Schedule::KIND_ONE_CYCLE ||
         (schedule.kind() == Schedule::KIND_STEP && schedule.steps() == 0);
}

double LearningRateAt(const v1::JobPlan& plan, uint64_t step) {
  const Schedule& schedule = plan.spec().schedule();
  const double rate = plan.spec().optimizer().learning_rate();
  const uint64_t total = std::max<uint64_t>(plan.total_steps(), 1), now = std::min(step, total - 1);
  if (schedule.kind() == Schedule::KIND_ONE_CYCLE) return OneCycleRate(schedule, rate, now, total);
  const uint64_t warmup = schedule.warmup_steps();
  if (now < warmup) return rate * static_cast<double>(now + 1) / static_cast<double>(warmup + 1);
  const uint64_t since = now - warmup, left = total - std::min(warmup, total - 1);
  switch (schedule.kind()) {
    case Schedule::KIND_STEP:
      return StepRate(schedule, rate, since, left);
    case Schedule::KIND_COSINE:
      return Anneal(rate, schedule.final_learning_rate(), static_cast<double>(since) / static_cast<double>(left));
    default:
      return rate;
  }
}

}  // namespace millrace
