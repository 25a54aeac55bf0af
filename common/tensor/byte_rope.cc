#include "common/tensor/byte_rope.h"

#include <bit>

namespace millrace {
namespace {

static_assert(std::endian::native == std::endian::little, "values on the wire and in files are little-endian");

// Received bytes have no alignment. The compiler turns this into one unaligned (vector) load.
float LoadFloat(const std::byte* data) {
  float value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

}  // namespace

void CopyFloats(const ByteRope& values, std::span<float> out) {
  auto* bytes = reinterpret_cast<std::byte*>(out.data());
  values.ForEachPiece([&](ByteRope::Piece piece) {
    std::memcpy(bytes, piece.data(), piece.size());
    bytes += piece.size();
  });
}

void AddFloats(const ByteRope& values, std::span<float> out) {
  values.ForEachBlock<sizeof(float)>([&](const std::byte* data, size_t first, size_t count) {
    float* __restrict sum = out.data() + first;
    for (size_t i = 0; i < count; ++i) sum[i] += LoadFloat(data + i * sizeof(float));
  });
}

void SumFloats(const ByteRope& values, std::span<const float> other, std::span<float> out) {
  values.ForEachBlock<sizeof(float)>([&](const std::byte* data, size_t first, size_t count) {
    const float* __restrict left = other.data() + first;
    float* __restrict sum = out.data() + first;
    for (size_t i = 0; i < count; ++i) sum[i] = left[i] + LoadFloat(data + i * sizeof(float));
  });
}

}  // namespace millrace
