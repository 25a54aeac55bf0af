// Numbers of eight bits that share an exponent in blocks of 32: MXINT8 of the OCP Microscaling Formats (MX)
// Specification 1.0, 2023.
//
// A block is one byte, the exponent e of its largest number, biased by 127, and then a signed byte for each number, in
// units of 2^(e - 6), to nearest, ties to even, at most 127 either way. What is rounded already is therefore encoded
// without loss. A vector's last block may be shorter. A block with an infinity or a not-a-number has the exponent byte
// 255 and is all not-a-number; one without anything of 2^-120 or more is all zero. Decoding takes any bytes: exponents
// under 7, which are not written, are zeros, and -128 is what it says.
//
// Blocks are counted from the beginning of what is given: pieces of one vector that are treated apart must begin at
// multiples of kMxint8Block of it. Threads: pure functions.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "common/tensor/byte_rope.h"

namespace millrace {

inline constexpr size_t kMxint8Block = 32;

// Of `count` numbers, and the count that takes as many bytes (nullopt if none does).
constexpr size_t Mxint8Bytes(size_t count) { return count + (count + kMxint8Block - 1) / kMxint8Block; }
constexpr std::optional<size_t> Mxint8Count(size_t bytes) {
  const size_t blocks = (bytes + kMxint8Block) / (kMxint8Block + 1);
  if (bytes % (kMxint8Block + 1) == 1) return std::nullopt;
  return bytes - blocks;
}

// In place.
void RoundToMxint8(std::span<float> values);
// `out` has Mxint8Bytes(values.size()) bytes.
void EncodeMxint8(std::span<const float> values, std::span<std::byte> out);
// `values` has Mxint8Bytes(out.size()) bytes, of any values.
void DecodeMxint8(const ByteRope& values, std::span<float> out);

}  // namespace millrace
