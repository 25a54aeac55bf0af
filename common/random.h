#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// Philox4x32-10: a random function from (counter, key) to 128 random bits, the same on every machine. It has no state,
// so any element of any stream costs the same and replicas need not talk to agree.
// J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11 (Random123). Not for secrets.
using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;
std::array<uint32_t, 4> Philox4x32(PhiloxCounter counter, PhiloxKey key);

// Reads one of 2^64 independent streams of a seed from its beginning. Counter words 0 and 1 hold the block number, 2
// and 3 the stream; the key is the seed (low word first). A copy goes on from the same place. Not thread-safe.
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, uint64_t stream);

  uint32_t NextUint32();
  // Uniform in [0, 1): the top 24 bits of one word, so every value is exact in float32.
  float NextUniform();

 private:
  PhiloxCounter counter_;
  PhiloxKey key_;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;  // words of block_ handed out
};

// 64 bits from the operating system, never 0: seeds of jitter, incarnations, run ids. Any thread.
uint64_t RandomSeed();

}  // namespace millrace
