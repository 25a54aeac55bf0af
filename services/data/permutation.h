#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// What a permutation is for. Each purpose of a seed has permutations of its own.
enum class PermutationPurpose : uint32_t {
  kSplit = 0,    // which samples of the train files become validation samples
  kShuffle = 1,  // the order of the train samples, anew every epoch
};

// A pseudo-random bijection of [0, size), element by element: no table, no state, the same on every machine. It takes
// the place of shuffling an array, so that any sample of any epoch is found at the same cost, however large the
// dataset.
//
//   Permutation order(train_count, seed, PermutationPurpose::kShuffle, epoch);
//   uint64_t sample = order(position);
//
// The algorithm is part of what makes weights reproducible; its values are pinned by golden tests. It is a Feistel
// network over the smallest power of two that holds `size`, with cycle walking (J. Black, P. Rogaway, "Ciphers with
// arbitrary finite domains", CT-RSA 2002):
//   bits = max(2, smallest b with 2^b >= size); high_bits = bits / 2; low_bits = bits - high_bits
//   round keys k[0..7]: for block j in 0..3, the four words w of Philox4x32-10 with counter {low32(index),
//   high32(index),
//     purpose, j} and key {low32(seed), high32(seed)} give k[2j] = w[0] | w[1] << 32 and k[2j + 1] = w[2] | w[3] << 32
//   F(k, x): z = x + k (mod 2^64), then SplitMix64's finalizer: z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
//     z = (z ^ z >> 27) * 0x94D049BB133111EB; z ^ z >> 31
//   one walk: high = value >> low_bits, low = its low_bits lowest bits; for r in 0..7:
//     even r: high ^= the high_bits highest bits of F(k[r], low);  odd r: low ^= the low_bits highest bits of F(k[r],
//     high) value = high << low_bits | low
//   walk until value < size. On average fewer than two walks are needed.
//
// Immutable: any thread. Not a cipher.
class Permutation {
 public:
  // `size` in [1, 2^62]. `index` tells permutations of one purpose apart, e.g. the epoch.
  Permutation(uint64_t size, uint64_t seed, PermutationPurpose purpose, uint64_t index);

  // `position` < size().
  uint64_t operator()(uint64_t position) const;
  uint64_t size() const { return size_; }

 private:
  static constexpr int kRounds = 8;

  uint64_t Walk(uint64_t value) const;

  uint64_t size_;
  int high_bits_;
  int low_bits_;
  std::array<uint64_t, kRounds> keys_;
};

}  // namespace millrace
