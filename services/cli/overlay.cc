#include "services/cli/overlay.h"

#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

constexpr uint32_t kZoom = 10;
constexpr uint32_t kSideMax = 4096;
constexpr size_t kColours = 3;
constexpr float kDimmed = 0.6f;  // the image, so that colours stand out

// Grey of a pixel, the mean of its channels.
float GreyOf(const v1::Explanation& explanation, size_t pixel) {
  const size_t pixels = size_t{explanation.height()} * explanation.width();
  const size_t channels = explanation.image().size() / pixels;
  float sum = 0;
  for (size_t channel = 0; channel < channels; ++channel) {
    sum += static_cast<uint8_t>(explanation.image()[channel * pixels + pixel]);
  }
  return sum / static_cast<float>(channels);
}

absl::StatusOr<std::string> EncodePng(const std::vector<uint8_t>& rgb, uint32_t width, uint32_t height) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  bool written = png_image_write_to_memory(&image, nullptr, &size, 0, rgb.data(), 0, nullptr) != 0;
  std::string encoded(size, '\0');
  written = written && png_image_write_to_memory(&image, encoded.data(), &size, 0, rgb.data(), 0, nullptr) != 0;
  if (!written) return absl::InternalError(absl::StrCat("cannot encode a PNG: ", image.message));
  encoded.resize(size);
  return encoded;
}

}  // namespace

absl::StatusOr<std::string> OverlayPng(const v1::Explanation& explanation) {
  const uint32_t width = explanation.width();
  const uint32_t height = explanation.height();
  const size_t pixels = size_t{height} * width;
  if (width == 0 || height == 0 || width > kSideMax || height > kSideMax ||
      explanation.map().size() != static_cast<int>(pixels) || explanation.image().empty() ||
      explanation.image().size() % pixels != 0) {
    return absl::InvalidArgumentError(absl::StrCat("an explanation of ", height, " x ", width, " pixels with ",
                                                   explanation.map().size(), " numbers and an image of ",
                                                   explanation.image().size(), " bytes"));
  }
  float strongest = 0;
  for (float value : explanation.map()) strongest = std::max(strongest, std::abs(value));
  std::vector<uint8_t> rgb(pixels * kZoom * kZoom * kColours);
  for (size_t y = 0; y < size_t{height} * kZoom; ++y) {
    for (size_t x = 0; x < size_t{width} * kZoom; ++x) {
      const size_t pixel = y / kZoom * width + x / kZoom;
      const float share = strongest > 0 ? explanation.map(static_cast<int>(pixel)) / strongest : 0;
      const float grey = kDimmed * GreyOf(explanation, pixel) * (1 - std::abs(share));
      uint8_t* const colours = &rgb[(y * width * kZoom + x) * kColours];
      colours[0] = static_cast<uint8_t>(grey + 255 * std::max(share, 0.0f));
      colours[1] = static_cast<uint8_t>(grey);
      colours[2] = static_cast<uint8_t>(grey + 255 * std::max(-share, 0.0f));
    }
  }
  return EncodePng(rgb, width * kZoom, height * kZoom);
}

}  // namespace millrace
