#pragma once

#include <cstdint>

namespace millrace {

// The size of an image whose channels lie one after the other, each in rows: uint8 [channels, height, width].
struct ImageShape {
  uint32_t channels = 1;
  uint32_t height = 0;
  uint32_t width = 0;

  uint64_t bytes() const { return uint64_t{channels} * height * width; }
  friend bool operator==(const ImageShape&, const ImageShape&) = default;
};

}  // namespace millrace
