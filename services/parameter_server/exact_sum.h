// The exact sum of non-negative doubles, which does not depend on the order of the additions: a fixed-point number wide
// enough for every bit of every term (Kulisch's long accumulator). Shards add up their parts of a gradient's squared
// norm with it, so that any number of shards comes to the same bits.
//
//   ExactSum sum;
//   sum.Add(0.25);          // any number of terms, in any order
//   sum.Add(other_sum);     // of another shard
//   double total = sum.Round();
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace {

class ExactSum {
 public:
  // From 2^-320, below the square of the smallest float, to 2^384: 2^120 squares of the largest float.
  static constexpr size_t kLimbs = 11;
  static constexpr int kLowestBit = -320;

  ExactSum() = default;
  // The number with these limbs, least significant first; the counterpart of limbs().
  explicit ExactSum(std::span<const uint64_t, kLimbs> limbs);

  // `term` must be at least 0 and below 2^300, and a multiple of 2^-320: as is any sum of squares of floats.
  void Add(double term);
  void Add(const ExactSum& other);

  // The nearest double below or at the sum.
  double Round() const;

  const std::array<uint64_t, kLimbs>& limbs() const { return limbs_; }
  bool operator==(const ExactSum&) const = default;

 private:
  void AddAt(size_t limb, uint64_t value);

  std::array<uint64_t, kLimbs> limbs_{};
};

}  // namespace millrace
