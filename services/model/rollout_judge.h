// Whether a candidate may take the place of the version that serves: a pure state machine over what both answered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/model/predictor.h"
#include "services/model/row_runner.h"

namespace millrace {

struct RolloutLimits {
  uint64_t rows = 1000;               // compared before a candidate is promoted; [1, 10^9]
  double agreement_min = 0.9;         // share of rows with the same answer; [0, 1]
  double confidence_shift_max = 0.1;  // of the mean probability of the answers, up or down; [0, 1]
  double latency_ratio_max = 2;       // of the time to compute the same rows, to the stable version's; > 0
};
// INVALID_ARGUMENT names the flag and its range.
absl::Status CheckLimits(const RolloutLimits& limits);

// What both versions made of the same rows. Sums, so that it can be added up.
struct Comparison {
  uint64_t rows = 0;    // that both answered
  uint64_t agree = 0;   // of them
  uint64_t failed = 0;  // rows that the stable version answered and the candidate did not
  double stable_confidence = 0;
  double candidate_confidence = 0;
  absl::Duration stable_time = {};
  absl::Duration candidate_time = {};

  Comparison& operator+=(const Comparison& other);
  double agreement() const;         // 1 without rows
  double confidence_shift() const;  // 0 without rows
  double latency_ratio() const;     // 1 without times
};

// Of the answers of two versions of the same input and classes to the same rows; without times. Rows on which the
// stable version failed do not count. A classifier's rows agree if the most probable class is the same, and its
// confidence is that class's probability; an autoencoder's agree if the candidate's error is no more than kErrorSlack
// above the stable one's, and it has no confidence.
inline constexpr double kErrorSlack = 0.1;  // a share
Comparison Compare(const ModelInfo& info, const RowAnswers& stable, const RowAnswers& candidate);

struct RolloutVerdict {
  enum class Reason { kPromoted, kErrors, kAgreement, kConfidence, kLatency };
  Reason reason = Reason::kPromoted;
  std::string text;  // with the numbers and the limit; for people

  bool promoted() const { return reason == Reason::kPromoted; }
};
std::string_view Name(RolloutVerdict::Reason reason);  // "promoted", "errors", "agreement", "confidence", "latency"

// comparing -> promoted | rolled back. It rolls back at the first row on which only the candidate fails, as soon as too
// many rows differ for the rest to make up for, and for any limit that is not kept after limits.rows; else it promotes
// then. A verdict is final. Not thread-safe.
class RolloutJudge {
 public:
  explicit RolloutJudge(const RolloutLimits& limits) : limits_(limits) {}

  // The verdict, when it falls or has fallen.
  const std::optional<RolloutVerdict>& Add(const Comparison& comparison);

  const RolloutLimits& limits() const { return limits_; }
  const Comparison& total() const { return total_; }  // until the verdict
  const std::optional<RolloutVerdict>& verdict() const { return verdict_; }

 private:
  std::optional<RolloutVerdict> Judge() const;

  const RolloutLimits limits_;
  Comparison total_;
  std::optional<RolloutVerdict> verdict_;
};

}  // namespace millrace
