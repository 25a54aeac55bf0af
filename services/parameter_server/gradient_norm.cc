#include "services/parameter_server/gradient_norm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/tensor/flat_layout.h"

namespace millrace {
namespace {

constexpr double kEpsilon = 1e-6;  // PyTorch's
constexpr size_t kLanes = 8;
static_assert(kShardAlignment % kLanes == 0);

// The square of a float is exact in a double. Lanes, so that the compiler may add several squares at once: it must not
// change the order of additions by itself.
double BlockSum(std::span<const float> block) {
  std::array<double, kLanes> lanes{};
  size_t i = 0;
  for (; i + kLanes <= block.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const double value = block[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (; i < block.size(); ++i) {
    const double value = block[i];
    lanes[i % kLanes] += value * value;
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace

void SquaredNorm::AddSquaresOf(std::span<const float> values) {
  for (size_t begin = 0; begin < values.size(); begin += kShardAlignment) {
    const double block = BlockSum(values.subspan(begin, std::min<size_t>(kShardAlignment, values.size() - begin)));
    if (!std::isfinite(block)) finite = false;
    if (finite) sum.Add(block);
  }
}

void SquaredNorm::Add(const SquaredNorm& other) {
  finite = finite && other.finite;
  sum.Add(other.sum);
}

double SquaredNorm::norm() const { return finite ? std::sqrt(sum.Round()) : std::numeric_limits<double>::infinity(); }

double ClipScale(double max_norm, double norm) {
  if (!std::isfinite(norm)) return 1;
  return std::min(1.0, max_norm / (norm + kEpsilon));
}

}  // namespace millrace
