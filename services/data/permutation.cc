#include "services/data/permutation.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "common/random.h"

namespace millrace {
namespace {

uint64_t Mix(uint64_t key, uint64_t value) {
  uint64_t z = value + key;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

uint64_t Join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

}  // namespace

Permutation::Permutation(uint64_t size, uint64_t seed, PermutationPurpose purpose, uint64_t index) : size_(size) {
  assert(size >= 1 && size <= uint64_t{1} << 62);
  const int bits = std::max(2, static_cast<int>(std::bit_width(size - 1)));
  high_bits_ = bits / 2;
  low_bits_ = bits - high_bits_;
  const PhiloxKey key = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (uint32_t block = 0; block < kRounds / 2; ++block) {
    const auto words = Philox4x32(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(purpose), block}, key);
    keys_[2 * block] = Join(words[0], words[1]);
    keys_[2 * block + 1] = Join(words[2], words[3]);
  }
}

uint64_t Permutation::operator()(uint64_t position) const {
  assert(position < size_);
  // The network permutes all of [0, 2^bits). Following it from inside [0, size) until it comes back inside is a
  // bijection of [0, size), and must end because the cycle closes at `position` at the latest.
  uint64_t value = position;
  do {
    value = Walk(value);
  } while (value >= size_);
  return value;
}

uint64_t Permutation::Walk(uint64_t value) const {
  uint64_t high = value >> low_bits_;
  uint64_t low = value & ((uint64_t{1} << low_bits_) - 1);
  for (int round = 0; round < kRounds; round += 2) {
    high ^= Mix(keys_[round], low) >> (64 - high_bits_);
    low ^= Mix(keys_[round + 1], high) >> (64 - low_bits_);
  }
  return high << low_bits_ | low;
}

}  // namespace millrace
