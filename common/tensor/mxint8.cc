#include "common/tensor/mxint8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstdint>
#include <limits>

namespace millrace {
namespace {

constexpr size_t kBlockBytes = kMxint8Block + 1;
constexpr uint32_t kNotFinite = 255;  // the exponent byte, as in float32
constexpr uint32_t kSmallest = 7;     // below it a unit would be no normal number

constexpr float PowerOfTwo(uint32_t biased_exponent) { return std::bit_cast<float>(biased_exponent << 23); }

// What an exponent byte means for the numbers of its block.
struct Scale {
  explicit Scale(uint32_t exponent) {
    if (exponent == kNotFinite) {
      unit = std::numeric_limits<float>::quiet_NaN();
    } else if (exponent >= kSmallest) {
      unit = PowerOfTwo(exponent - 6);
      inverse = PowerOfTwo(260 - exponent);
    }
  }
  float unit = 0;
  float inverse = 0;
};

// The exponent byte of a block: float32's own of its largest number, but that tiny ones count as zero. (Here and below,
// the extent of a whole block is in its type, so that the compiler unrolls and vectorises it.)
template <size_t kCount>
uint32_t ExponentOf(std::span<const float, kCount> block) {
  int32_t largest = 0;
  for (const float value : block) largest = std::max(largest, std::bit_cast<int32_t>(value) & 0x7fffffff);
  const uint32_t exponent = static_cast<uint32_t>(largest) >> 23;
  return exponent < kSmallest ? 0 : exponent;
}

// A number in units, a whole one of at most 127 either way. Of a block that is not finite it is meaningless.
float InUnits(float value, float inverse) {
  // Float32 has no fractions here, so an addition rounds, to nearest and ties to even.
  constexpr float kWhole = 12582912;  // 1.5 * 2^23
  const float units = (value * inverse + kWhole) - kWhole;
  return std::min(std::max(units, -127.0f), 127.0f);
}

template <size_t kCount>
void RoundBlock(std::span<float, kCount> block) {
  const Scale scale(ExponentOf(std::span<const float, kCount>(block)));
  if (scale.inverse == 0) {
    std::ranges::fill(block, scale.unit);
    return;
  }
  for (float& value : block) value = InUnits(value, scale.inverse) * scale.unit;
}

template <size_t kCount>
void EncodeBlock(std::span<const float, kCount> block, std::byte* out) {
  const uint32_t exponent = ExponentOf(block);
  const Scale scale(exponent);
  *out++ = static_cast<std::byte>(exponent);
  if (scale.inverse == 0) {
    std::fill_n(out, block.size(), std::byte{0});
    return;
  }
  for (size_t i = 0; i < block.size(); ++i) {
    out[i] = static_cast<std::byte>(static_cast<int8_t>(static_cast<int32_t>(InUnits(block[i], scale.inverse))));
  }
}

template <size_t kCount>
void DecodeBlock(const std::byte* data, std::span<float, kCount> out) {
  const Scale scale(std::to_integer<uint32_t>(*data++));
  if (scale.inverse == 0) {
    std::ranges::fill(out, scale.unit);
    return;
  }
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(static_cast<int8_t>(data[i])) * scale.unit;
}

}  // namespace

void RoundToMxint8(std::span<float> values) {
  for (; values.size() > kMxint8Block; values = values.subspan(kMxint8Block)) {
    RoundBlock(values.first<kMxint8Block>());
  }
  RoundBlock(values);
}

void EncodeMxint8(std::span<const float> values, std::span<std::byte> out) {
  assert(out.size() == Mxint8Bytes(values.size()));
  std::byte* next = out.data();
  for (; values.size() > kMxint8Block; values = values.subspan(kMxint8Block), next += kBlockBytes) {
    EncodeBlock(values.first<kMxint8Block>(), next);
  }
  if (!values.empty()) EncodeBlock(values, next);
}

void DecodeMxint8(const ByteRope& values, std::span<float> out) {
  assert(values.size() == Mxint8Bytes(out.size()));
  values.ForEachBlock<kBlockBytes>([&](const std::byte* data, size_t first, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      DecodeBlock(data + i * kBlockBytes, out.subspan((first + i) * kMxint8Block).first<kMxint8Block>());
    }
  });
  const size_t rest = out.size() % kMxint8Block;
  if (rest == 0) return;
  std::array<std::byte, kBlockBytes> last;
  std::byte* next = last.data();
  ByteRope tail = values;
  tail.RemovePrefix(values.size() - Mxint8Bytes(rest));
  tail.ForEachPiece([&](ByteRope::Piece piece) { next = std::ranges::copy(piece, next).out; });
  DecodeBlock(last.data(), out.last(rest));
}

}  // namespace millrace
