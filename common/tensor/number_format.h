// The number formats in which gradients and weights travel. Sums and optimizers stay float32.
//
// What is sent must not depend on who sends it: a worker that holds two neighbouring slots adds them before it pushes,
// another one leaves that to the shard. So with a narrow format every node of the slot tree is rounded to it, leaf or
// sum, wherever it is made (`Round`); what is pushed is in the format already, and encoding it loses nothing.
//
//   Round(format, sum);                                  // to the nearest number of the format, ties to even
//   std::vector<std::byte> bytes(EncodedBytes(format, sum.size()));
//   Encode(format, sum, bytes);
//   Decode(format, received, sum);                       // the same numbers
//
// float16 has no numbers beyond 65,504: what is larger becomes that, with its sign. Not-a-number stays one. Threads:
// pure functions. Source of the conversions: LibTorch's c10::BFloat16 and c10::Half (IEEE 754 binary16).
#pragma once

#include <cstddef>
#include <span>

#include "common/tensor/byte_rope.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// Bytes of one number: 4 or 2. UNSPECIFIED is float32.
size_t NumberBytes(v1::NumberFormat format);
inline size_t EncodedBytes(v1::NumberFormat format, size_t count) { return count * NumberBytes(format); }
inline bool IsNarrow(v1::NumberFormat format) { return NumberBytes(format) < sizeof(float); }

// In place. Does nothing for float32.
void Round(v1::NumberFormat format, std::span<float> values);

// `out` has EncodedBytes(format, values.size()) bytes; little-endian. Rounds as Round does.
void Encode(v1::NumberFormat format, std::span<const float> values, std::span<std::byte> out);

// `values` has EncodedBytes(format, out.size()) bytes.
void Decode(v1::NumberFormat format, const ByteRope& values, std::span<float> out);

}  // namespace millrace
