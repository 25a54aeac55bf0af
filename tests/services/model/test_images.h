// Pictures for the tests, encoded by the libraries themselves.
#pragma once

#include <jpeglib.h>
#include <png.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

namespace millrace {

using Bytes = std::vector<uint8_t>;

// `format`: PNG_FORMAT_...; `samples` as that format lays them out, `colormap` for those with a palette.
inline Bytes EncodePng(uint32_t width, uint32_t height, uint32_t format, const void* samples,
                       const void* colormap = nullptr, uint32_t colormap_entries = 0) {
  png_image image;
  std::memset(&image, 0, sizeof(image));
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = format;
  image.colormap_entries = colormap_entries;
  png_alloc_size_t size = 0;
  if (png_image_write_to_memory(&image, nullptr, &size, 0, samples, 0, colormap) == 0) std::abort();
  Bytes encoded(size);
  if (png_image_write_to_memory(&image, encoded.data(), &size, 0, samples, 0, colormap) == 0) std::abort();
  encoded.resize(size);
  return encoded;
}

// samples: width * height * channels bytes.
inline Bytes EncodeJpeg(uint32_t width, uint32_t height, int channels, const uint8_t* samples,
                        bool progressive = false) {
  jpeg_compress_struct encoder;
  jpeg_error_mgr errors;
  encoder.err = jpeg_std_error(&errors);
  jpeg_create_compress(&encoder);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&encoder, &memory, &size);
  encoder.image_width = width;
  encoder.image_height = height;
  encoder.input_components = channels;
  encoder.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&encoder);
  jpeg_set_quality(&encoder, 95, TRUE);
  if (progressive) jpeg_simple_progression(&encoder);
  jpeg_start_compress(&encoder, TRUE);
  while (encoder.next_scanline < height) {
    JSAMPROW row = const_cast<JSAMPROW>(samples + size_t{encoder.next_scanline} * width * channels);
    jpeg_write_scanlines(&encoder, &row, 1);
  }
  jpeg_finish_compress(&encoder);
  Bytes encoded(memory, memory + size);
  jpeg_destroy_compress(&encoder);
  std::free(memory);
  return encoded;
}

// A grey picture of which `level(x, y)` gives the samples.
inline Bytes Draw(uint32_t width, uint32_t height, const std::function<int(uint32_t, uint32_t)>& level) {
  Bytes samples;
  for (uint32_t y = 0; y < height; ++y) {
    for (uint32_t x = 0; x < width; ++x) samples.push_back(static_cast<uint8_t>(level(x, y)));
  }
  return samples;
}

}  // namespace millrace
