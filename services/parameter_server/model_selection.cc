#include "services/parameter_server/model_selection.h"

#include <cmath>
#include <cstdint>
#include <optional>

namespace millrace {
namespace {

// How good a version is: more is better.
double Score(const v1::JobSpec& spec, const v1::Evaluation& evaluation) {
  return spec.best_by() == v1::BEST_BY_ACCURACY ? evaluation.accuracy() : -evaluation.loss();
}

}  // namespace

const v1::Evaluation* BestOf(const v1::JobSpec& spec, std::span<const v1::Evaluation> history) {
  const v1::Evaluation* best = nullptr;
  for (const v1::Evaluation& evaluation : history) {
    if (!std::isfinite(evaluation.loss())) continue;
    if (best == nullptr || Score(spec, evaluation) > Score(spec, *best)) best = &evaluation;
  }
  return best;
}

bool StopsAfter(const v1::JobSpec& spec, std::span<const v1::Evaluation> history) {
  const uint32_t patience = spec.early_stopping().patience();
  if (patience == 0) return false;
  std::optional<double> mark;
  uint32_t waited = 0;
  for (const v1::Evaluation& evaluation : history) {
    const double score = Score(spec, evaluation);
    const bool improved =
        std::isfinite(evaluation.loss()) && (!mark.has_value() || score > *mark + spec.early_stopping().min_delta());
    waited = improved ? 0 : waited + 1;
    if (improved) mark = score;
  }
  return waited >= patience;
}

}  // namespace millrace
