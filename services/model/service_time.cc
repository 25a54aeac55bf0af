#include "services/model/service_time.h"

#include <algorithm>
#include <bit>

namespace millrace {
namespace {

// The weight of a new observation, and by how much one may be out of line: a batch that met a stall of the machine is
// not what the next will take.
constexpr double kWeight = 0.1;
constexpr double kRatioMax = 3;

double SizeOf(int point) { return static_cast<double>(1u << point); }

// Of two neighbouring points: the lower one, and how far towards the upper.
struct Position {
  int point;
  double fraction;
};
Position PositionOf(uint32_t rows, int points) {
  const int point = std::min(static_cast<int>(std::bit_width(std::max(rows, 1u))) - 1, points - 1);
  if (point == points - 1) return {point, 0};
  return {point, rows / SizeOf(point) - 1};
}

}  // namespace

absl::Duration ServiceTime::Estimate(uint32_t rows) const {
  const auto [point, fraction] = PositionOf(rows, kPoints);
  double seconds = seconds_[point];
  if (fraction > 0) seconds += fraction * (seconds_[point + 1] - seconds);
  return absl::Seconds(seconds * std::max(1.0, rows / SizeOf(kPoints - 1)));
}

void ServiceTime::Observe(uint32_t rows, absl::Duration took) {
  const double seconds = absl::ToDoubleSeconds(took);
  if (seconds <= 0) return;
  if (!known_) {
    for (int point = 0; point < kPoints; ++point) seconds_[point] = seconds * std::max(1.0, SizeOf(point) / rows);
    known_ = true;
  }
  const double ratio = seconds / absl::ToDoubleSeconds(Estimate(rows));
  const auto [point, fraction] = PositionOf(rows, kPoints);
  Correct(point, ratio, 1 - fraction);
  if (fraction > 0) Correct(point + 1, ratio, fraction);
}

void ServiceTime::Correct(int point, double ratio, double share) {
  double& seen = seen_[point];
  if (seen >= 1) ratio = std::min(ratio, kRatioMax);
  // The first ones are averaged evenly.
  const double weight = share * std::max(kWeight, 1 / (1 + seen));
  seconds_[point] *= 1 + weight * (ratio - 1);
  seen = std::min(seen + share, 1 / kWeight);
}

}  // namespace millrace
