#include "common/tensor/number_format.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <limits>

#include "c10/util/BFloat16.h"
#include "c10/util/Half.h"

namespace millrace {
namespace {

static_assert(sizeof(c10::BFloat16) == 2 && sizeof(c10::Half) == 2);

template <typename Narrow>
Narrow ToNarrow(float value) {
  if constexpr (std::is_same_v<Narrow, c10::Half>) {
    constexpr float kLargest = 65504;  // also for infinities; a comparison with NaN is false
    if (value > kLargest) value = kLargest;
    if (value < -kLargest) value = -kLargest;
  }
  return Narrow(value);
}

template <typename Narrow>
void RoundTo(std::span<float> values) {
  for (float& value : values) value = static_cast<float>(ToNarrow<Narrow>(value));
}

template <typename Narrow>
void EncodeAs(std::span<const float> values, std::span<std::byte> out) {
  std::byte* next = out.data();
  for (const float value : values) {
    const Narrow narrow = ToNarrow<Narrow>(value);
    std::memcpy(next, &narrow, sizeof(narrow));
    next += sizeof(narrow);
  }
}

template <typename Narrow>
void DecodeAs(const ByteRope& values, std::span<float> out) {
  values.ForEachBlock<sizeof(Narrow)>([&](const std::byte* data, size_t first, size_t count) {
    float* const numbers = out.data() + first;
    for (size_t i = 0; i < count; ++i) {
      Narrow narrow;
      std::memcpy(&narrow, data + i * sizeof(narrow), sizeof(narrow));
      numbers[i] = static_cast<float>(narrow);
    }
  });
}

// Of the formats in which numbers lie one by one.
size_t NumberBytes(v1::NumberFormat format) { return IsNarrow(format) ? sizeof(c10::Half) : sizeof(float); }

}  // namespace

size_t EncodedBytes(v1::NumberFormat format, size_t count) {
  return format == v1::NUMBER_FORMAT_MXINT8 ? Mxint8Bytes(count) : count * NumberBytes(format);
}

std::optional<size_t> EncodedCount(v1::NumberFormat format, size_t bytes) {
  if (format == v1::NUMBER_FORMAT_MXINT8) return Mxint8Count(bytes);
  if (bytes % NumberBytes(format) != 0) return std::nullopt;
  return bytes / NumberBytes(format);
}

void Round(v1::NumberFormat format, std::span<float> values) {
  switch (format) {
    case v1::NUMBER_FORMAT_BFLOAT16:
      return RoundTo<c10::BFloat16>(values);
    case v1::NUMBER_FORMAT_FLOAT16:
      return RoundTo<c10::Half>(values);
    case v1::NUMBER_FORMAT_MXINT8:
      return RoundToMxint8(values);
    default:
      return;
  }
}

void Encode(v1::NumberFormat format, std::span<const float> values, std::span<std::byte> out) {
  assert(out.size() == EncodedBytes(format, values.size()));
  switch (format) {
    case v1::NUMBER_FORMAT_BFLOAT16:
      return EncodeAs<c10::BFloat16>(values, out);
    case v1::NUMBER_FORMAT_FLOAT16:
      return EncodeAs<c10::Half>(values, out);
    case v1::NUMBER_FORMAT_MXINT8:
      return EncodeMxint8(values, out);
    default:
      std::ranges::copy(std::as_bytes(values), out.begin());
  }
}

void Decode(v1::NumberFormat format, const ByteRope& values, std::span<float> out) {
  assert(values.size() == EncodedBytes(format, out.size()));
  switch (format) {
    case v1::NUMBER_FORMAT_BFLOAT16:
      return DecodeAs<c10::BFloat16>(values, out);
    case v1::NUMBER_FORMAT_FLOAT16:
      return DecodeAs<c10::Half>(values, out);
    case v1::NUMBER_FORMAT_MXINT8:
      return DecodeMxint8(values, out);
    default:
      CopyFloats(values, out);
  }
}

}  // namespace millrace
