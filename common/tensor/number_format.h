// The number formats in which gradients and weights travel. Sums and optimizers stay float32.
//
// What is sent must not depend on who sends it: a worker that holds two neighbouring slots adds them before it pushes,
// another one leaves that to the shard. So with a narrow format every node of the slot tree is rounded to it, leaf or
// sum, wherever it is made (`Round`); what is pushed is in the format already, and encoding it loses nothing.
//
//   Round(format, sum);                                  // to the nearest numbers of the format, ties to even
//   std::vector<std::byte> bytes(EncodedBytes(format, sum.size()));
//   Encode(format, sum, bytes);
//   Decode(format, received, sum);                       // the same numbers
//
// float16 has no numbers beyond 65,504: what is larger becomes that, with its sign. Not-a-number stays one, and in
// mxint8 makes its whole block one. Threads: pure functions. Source of the conversions: LibTorch's c10::BFloat16 and
// c10::Half (IEEE 754 binary16), mxint8.h.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "common/tensor/byte_rope.h"
#include "common/tensor/mxint8.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// Numbers that depend on each other when they are rounded. Parts of a vector that are rounded, or travel, apart begin
// at multiples of this, whatever the format.
inline constexpr size_t kNumbersTogether = kMxint8Block;

// Whether numbers of the format take fewer bytes than float32, which UNSPECIFIED and what is unknown here stand for.
constexpr bool IsNarrow(v1::NumberFormat format) {
  return format == v1::NUMBER_FORMAT_BFLOAT16 || format == v1::NUMBER_FORMAT_FLOAT16 ||
         format == v1::NUMBER_FORMAT_MXINT8;
}

// Bytes that `count` numbers take. The numbers from `count` on begin there if it is a multiple of kNumbersTogether.
size_t EncodedBytes(v1::NumberFormat format, size_t count);
// The other way round; nullopt if no count takes so many.
std::optional<size_t> EncodedCount(v1::NumberFormat format, size_t bytes);

// In place. Does nothing for float32.
void Round(v1::NumberFormat format, std::span<float> values);

// `out` has EncodedBytes(format, values.size()) bytes; little-endian. Rounds as Round does.
void Encode(v1::NumberFormat format, std::span<const float> values, std::span<std::byte> out);

// `values` has EncodedBytes(format, out.size()) bytes.
void Decode(v1::NumberFormat format, const ByteRope& values, std::span<float> out);

}  // namespace millrace
