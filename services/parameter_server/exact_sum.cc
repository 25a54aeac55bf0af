#include "services/parameter_server/exact_sum.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace millrace {

ExactSum::ExactSum(std::span<const uint64_t, kLimbs> limbs) { std::copy(limbs.begin(), limbs.end(), limbs_.begin()); }

void ExactSum::AddAt(size_t limb, uint64_t value) {
  for (; value != 0 && limb < kLimbs; ++limb) {
    limbs_[limb] += value;
    value = limbs_[limb] < value ? 1 : 0;  // the carry
  }
}

void ExactSum::Add(double term) {
  if (!(term > 0)) return;
  int exponent = 0;
  const double fraction = std::frexp(term, &exponent);  // in [0.5, 1)
  const auto mantissa = static_cast<uint64_t>(std::ldexp(fraction, 53));
  const int position = exponent - 53 - kLowestBit;  // of the mantissa's lowest bit
  if (position < 0) return AddAt(0, position > -64 ? mantissa >> -position : 0);
  const size_t limb = static_cast<size_t>(position) / 64;
  const int shift = position % 64;
  AddAt(limb, mantissa << shift);
  if (shift > 0) AddAt(limb + 1, mantissa >> (64 - shift));
}

void ExactSum::Add(const ExactSum& other) {
  for (size_t i = 0; i < kLimbs; ++i) AddAt(i, other.limbs_[i]);
}

double ExactSum::Round() const {
  size_t top = kLimbs;
  while (top > 0 && limbs_[top - 1] == 0) --top;
  if (top == 0) return 0;
  --top;
  // The 64 bits from the highest one down, of which a double takes the first 53.
  const int zeros = std::countl_zero(limbs_[top]);
  uint64_t bits = limbs_[top] << zeros;
  if (zeros > 0 && top > 0) bits |= limbs_[top - 1] >> (64 - zeros);
  return std::ldexp(static_cast<double>(bits >> 11), static_cast<int>(top) * 64 - zeros + 11 + kLowestBit);
}

}  // namespace millrace
