// The squared Euclidean norm of a gradient that several shards hold parts of, and the scale that clips it. It is the
// same bits for any number of shards: sums are made over blocks of 64 elements of the flat vector, which no shard
// boundary cuts (kShardAlignment), and the blocks' sums are added exactly.
#pragma once

#include <span>

#include "services/parameter_server/exact_sum.h"

namespace millrace {

struct SquaredNorm {
  ExactSum sum;
  bool finite = true;  // no value was infinite or not a number; the sum means nothing otherwise

  // Adds the squares of a piece of the vector, which begins on a multiple of 64 elements and ends on one, or where the
  // vector ends.
  void AddSquaresOf(std::span<const float> values);
  void Add(const SquaredNorm& other);

  double norm() const;  // infinite if not finite
  bool operator==(const SquaredNorm&) const = default;
};

// What the gradient is to be multiplied by so that its norm is at most `max_norm`, as torch.nn.utils.clip_grad_norm_
// does: max_norm / (norm + 1e-6), at most 1. 1 for a norm that is not finite: no scale would help.
double ClipScale(double max_norm, double norm);

}  // namespace millrace
