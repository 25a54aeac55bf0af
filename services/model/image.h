// Pictures as clients send them, and the pixels that a network of small fixed input takes.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

// A decoded picture: 8 bits per sample, rows from top to bottom, channels interleaved, nothing between rows.
struct Image {
  uint32_t width = 0;     // pixels
  uint32_t height = 0;    // pixels
  uint32_t channels = 0;  // 1: grey, 3: red, green, blue
  std::vector<uint8_t> pixels;
};

// What one row of a model's input is: uint8 [channels, height, width].
struct ImageShape {
  uint32_t channels = 0;
  uint32_t height = 0;
  uint32_t width = 0;

  uint64_t bytes() const { return uint64_t{channels} * height * width; }
  friend bool operator==(const ImageShape&, const ImageShape&) = default;
};

}  // namespace millrace
