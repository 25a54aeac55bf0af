#include "services/model/rollout_judge.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "absl/strings/str_format.h"

namespace millrace {
namespace {

constexpr uint64_t kRowsMax = 1'000'000'000;

double Share(double part, uint64_t rows) { return part / static_cast<double>(rows); }

bool Failed(const RowAnswers& answers, uint64_t row) {
  return std::ranges::find(answers.faults, row, &RowFault::row) != answers.faults.end();
}

}  // namespace

absl::Status CheckLimits(const RolloutLimits& limits) {
  if (limits.rows < 1 || limits.rows > kRowsMax) {
    return absl::InvalidArgumentError("--rollout-rows must be in [1, 1000000000]");
  }
  if (!(limits.agreement_min >= 0 && limits.agreement_min <= 1)) {
    return absl::InvalidArgumentError("--rollout-min-agreement must be in [0, 1]");
  }
  if (!(limits.confidence_shift_max >= 0 && limits.confidence_shift_max <= 1)) {
    return absl::InvalidArgumentError("--rollout-max-confidence-shift must be in [0, 1]");
  }
  if (!(limits.latency_ratio_max > 0)) return absl::InvalidArgumentError("--rollout-max-latency-ratio must be over 0");
  return absl::OkStatus();
}

Comparison& Comparison::operator+=(const Comparison& other) {
  rows += other.rows;
  agree += other.agree;
  failed += other.failed;
  stable_confidence += other.stable_confidence;
  candidate_confidence += other.candidate_confidence;
  stable_time += other.stable_time;
  candidate_time += other.candidate_time;
  return *this;
}

double Comparison::agreement() const { return rows == 0 ? 1 : Share(static_cast<double>(agree), rows); }

double Comparison::confidence_shift() const {
  return rows == 0 ? 0 : Share(candidate_confidence - stable_confidence, rows);
}

double Comparison::latency_ratio() const {
  return stable_time <= absl::ZeroDuration() ? 1 : absl::FDivDuration(candidate_time, stable_time);
}

Comparison Compare(const ModelInfo& info, const RowAnswers& stable, const RowAnswers& candidate) {
  Comparison comparison;
  const uint64_t row_values = info.values_per_row();
  for (uint64_t row = 0; row < stable.values.size() / row_values; ++row) {
    if (Failed(stable, row)) continue;
    if (Failed(candidate, row)) {
      ++comparison.failed;
      continue;
    }
    ++comparison.rows;
    const auto before = std::span(stable.values).subspan(row * row_values, row_values);
    const auto after = std::span(candidate.values).subspan(row * row_values, row_values);
    if (info.classes == 0) {
      comparison.agree += after.back() <= before.back() * (1 + kErrorSlack) ? 1 : 0;
      continue;
    }
    const auto best_before = std::max_element(before.begin(), before.end());
    const auto best_after = std::max_element(after.begin(), after.end());
    comparison.agree += best_before - before.begin() == best_after - after.begin() ? 1 : 0;
    comparison.stable_confidence += *best_before;
    comparison.candidate_confidence += *best_after;
  }
  return comparison;
}

std::string_view Name(RolloutVerdict::Reason reason) {
  switch (reason) {
    case RolloutVerdict::Reason::kPromoted:
      return "promoted";
    case RolloutVerdict::Reason::kErrors:
      return "errors";
    case RolloutVerdict::Reason::kAgreement:
      return "agreement";
    case RolloutVerdict::Reason::kConfidence:
      return "confidence";
    case RolloutVerdict::Reason::kLatency:
      return "latency";
  }
  return "unknown";
}

const std::optional<RolloutVerdict>& RolloutJudge::Add(const Comparison& comparison) {
  if (verdict_) return verdict_;
  total_ += comparison;
  verdict_ = Judge();
  return verdict_;
}

std::optional<RolloutVerdict> RolloutJudge::Judge() const {
  using Reason = RolloutVerdict::Reason;
  if (total_.failed > 0) {
    return RolloutVerdict{Reason::kErrors, absl::StrFormat("errors: it failed on %d rows which the stable version "
                                                           "answered, after %d rows without a fault",
                                                           total_.failed, total_.rows)};
  }
  const uint64_t rows = std::max(limits_.rows, total_.rows);  // the last comparison may go beyond
  const uint64_t differ = total_.rows - total_.agree;
  // As if all that are left agreed. A rounding error must not turn 900 of 1000 rows into less than 0.9.
  if (Share(static_cast<double>(rows - differ), rows) < limits_.agreement_min - 1e-9) {
    return RolloutVerdict{
        Reason::kAgreement,
        absl::StrFormat("agreement: %d of %d rows have the stable version's answer; of %d at least %.2f %% must",
                        total_.agree, total_.rows, rows, 100 * limits_.agreement_min)};
  }
  if (total_.rows < limits_.rows) return std::nullopt;
  const double shift = total_.confidence_shift();
  if (std::abs(shift) > limits_.confidence_shift_max) {
    return RolloutVerdict{Reason::kConfidence,
                          absl::StrFormat("confidence: the mean over %d rows moved by %+.4f; the limit is %.4f",
                                          total_.rows, shift, limits_.confidence_shift_max)};
  }
  if (total_.latency_ratio() > limits_.latency_ratio_max) {
    return RolloutVerdict{Reason::kLatency,
                          absl::StrFormat("latency: %.2f times the stable version's over %d rows; the limit is %.2f",
                                          total_.latency_ratio(), total_.rows, limits_.latency_ratio_max)};
  }
  return RolloutVerdict{Reason::kPromoted,
                        absl::StrFormat("%.2f %% of %d rows agree, confidence moved by %+.4f, %.2f times the latency",
                                        100 * total_.agreement(), total_.rows, shift, total_.latency_ratio())};
}

}  // namespace millrace
