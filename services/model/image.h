// Pictures as clients send them.
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

}  // namespace millrace
