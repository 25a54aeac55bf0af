#include "services/parameter_server/rounds.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/parameter_server/model_selection.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

uint64_t EvaluationSamples(const v1::JobPlan& plan, v1::Lease::Kind kind) {
  return kind == v1::Lease::KIND_VALIDATION ? plan.dataset().validation_count() : plan.dataset().test_count();
}

// What follows at `version` once the evaluation `done`, if any, is complete there.
std::optional<RoundId> RoundAt(const v1::JobPlan& plan, uint64_t version, std::optional<v1::Lease::Kind> done,
                               ValidationHistory history) {
  const bool evaluate = !done.has_value() && IsEpochEnd(plan, version);
  if (evaluate && EvaluationSamples(plan, v1::Lease::KIND_VALIDATION) > 0) {
    return RoundId{v1::Lease::KIND_VALIDATION, version};
  }
  if (!IsLastVersion(plan, version, history)) return RoundId{v1::Lease::KIND_TRAIN, version};
  if (EvaluationSamples(plan, v1::Lease::KIND_TEST) == 0) return std::nullopt;
  if (done != v1::Lease::KIND_TEST) return RoundId{v1::Lease::KIND_TEST, version};
  const v1::Evaluation* const best = BestOf(plan.spec(), history);
  if (best == nullptr || best->version() == version) return std::nullopt;
  return RoundId{v1::Lease::KIND_TEST, best->version()};
}

}  // namespace

std::string RoundName(const RoundId& round) {
  switch (round.kind) {
    case v1::Lease::KIND_VALIDATION:
      return absl::StrCat("validation at version ", round.version);
    case v1::Lease::KIND_TEST:
      return absl::StrCat("test at version ", round.version);
    default:
      return absl::StrCat("step ", round.version);
  }
}

std::string UnitsName(const RoundId& round, uint32_t begin, uint32_t end) {
  const char* noun = round.is_train() ? "slot" : "unit";
  if (end == begin + 1) return absl::StrCat(noun, " ", begin);
  return absl::StrCat(noun, "s [", begin, ", ", end, ")");
}

bool IsLastVersion(const v1::JobPlan& plan, uint64_t version, ValidationHistory history) {
  if (IsFinalVersion(plan, version)) return true;
  return !history.empty() && history.back().version() == version && StopsAfter(plan.spec(), history);
}

std::optional<RoundId> FirstRound(const v1::JobPlan& plan, ValidationHistory history) {
  return RoundAt(plan, plan.start_version(), std::nullopt, history);
}

std::optional<RoundId> NextRound(const v1::JobPlan& plan, const RoundId& round, ValidationHistory history) {
  if (round.is_train()) return RoundAt(plan, round.version + 1, std::nullopt, history);
  const bool of_the_best =
      round.kind == v1::Lease::KIND_TEST && !history.empty() && round.version < history.back().version();
  if (of_the_best) return std::nullopt;
  return RoundAt(plan, round.version, round.kind, history);
}

uint32_t RoundUnits(const v1::JobPlan& plan, const RoundId& round) {
  if (round.is_train()) return plan.spec().slots();
  const uint64_t batch = plan.spec().evaluation_batch_size();
  return static_cast<uint32_t>((EvaluationSamples(plan, round.kind) + batch - 1) / batch);
}

uint32_t UnitSamples(const v1::JobPlan& plan, const RoundId& round, uint32_t unit) {
  if (round.is_train()) {
    const uint64_t samples = StepSamples(plan, round.version), slots = plan.spec().slots();
    return static_cast<uint32_t>(samples * (uint64_t{unit} + 1) / slots - samples * unit / slots);
  }
  const uint64_t samples = EvaluationSamples(plan, round.kind), batch = plan.spec().evaluation_batch_size();
  return static_cast<uint32_t>(std::min(batch, samples - std::min(samples, unit * batch)));
}

}  // namespace millrace
