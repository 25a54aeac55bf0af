#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "services/model/image_codecs.h"

namespace millrace {
namespace {

constexpr uint8_t kSignature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr size_t kChunkOverhead = 12;  // length, type, checksum
constexpr size_t kHeaderBytes = 13;    // of IHDR's data

uint32_t BigEndian32(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}

absl::Status Corrupt(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("corrupt PNG: ", what)); }

// libpng reads no further than the last row and forgives much; this walk sees every byte up to IEND, so that a torn
// file is refused wherever it is torn. Chunks and their checksums: PNG specification (W3C, 2003), section 5.
absl::Status CheckChunks(std::span<const uint8_t> encoded) {
  size_t at = sizeof(kSignature);
  for (bool first = true;; first = false) {
    if (encoded.size() - at < kChunkOverhead) return Corrupt(absl::StrCat("it ends at byte ", encoded.size()));
    const uint32_t length = BigEndian32(&encoded[at]);
    if (length > encoded.size() - at - kChunkOverhead) return Corrupt(absl::StrCat("it ends at byte ", encoded.size()));
    const uint8_t* type = &encoded[at + 4];
    if (BigEndian32(type + 4 + length) != crc32(0, type, 4 + length)) {
      return Corrupt(absl::StrCat("checksum mismatch in the chunk at byte ", at));
    }
    if (first) {
      if (std::memcmp(type, "IHDR", 4) != 0 || length != kHeaderBytes)
        return Corrupt("it does not start with a header");
      if (absl::Status sides = CheckImageSides(BigEndian32(type + 4), BigEndian32(type + 8)); !sides.ok()) return sides;
    }
    if (std::memcmp(type, "IEND", 4) == 0) return absl::OkStatus();
    at += kChunkOverhead + length;
  }
}

// ITU-R BT.601, the weights of JPEG's luma, in 1/256.
uint8_t Luma(const uint8_t* rgb) { return static_cast<uint8_t>((77 * rgb[0] + 150 * rgb[1] + 29 * rgb[2] + 128) >> 8); }

// Whether what is drawn (pixels weighted by their alpha) is light on the whole, so that it needs a black ground to be
// seen.
bool DrawingIsLight(std::span<const uint8_t> rgba) {
  uint64_t light = 0;
  uint64_t weight = 0;
  for (size_t i = 0; i < rgba.size(); i += 4) {
    light += uint64_t{Luma(&rgba[i])} * rgba[i + 3];
    weight += rgba[i + 3];
  }
  return light > weight * 128;
}

std::vector<uint8_t> Flatten(std::span<const uint8_t> rgba, bool has_alpha, uint32_t channels) {
  const uint32_t ground = has_alpha && DrawingIsLight(rgba) ? 0 : 255;
  std::vector<uint8_t> pixels(rgba.size() / 4 * channels);
  uint8_t* out = pixels.data();
  for (size_t i = 0; i < rgba.size(); i += 4) {
    uint8_t rgb[3];
    const uint32_t alpha = rgba[i + 3];
    for (int c = 0; c < 3; ++c)
      rgb[c] = static_cast<uint8_t>((rgba[i + c] * alpha + ground * (255 - alpha) + 127) / 255);
    if (channels == 1) {
      *out++ = Luma(rgb);
    } else {
      out = std::copy(rgb, rgb + 3, out);
    }
  }
  return pixels;
}

}  // namespace

bool IsPng(std::span<const uint8_t> encoded) {
  return encoded.size() >= sizeof(kSignature) && std::memcmp(encoded.data(), kSignature, sizeof(kSignature)) == 0;
}

absl::StatusOr<Image> DecodePng(std::span<const uint8_t> encoded, uint32_t channels) {
  if (absl::Status chunks = CheckChunks(encoded); !chunks.ok()) return chunks;
  // libpng's simplified interface catches its own longjmps and reports errors in `control`.
  png_image control;
  std::memset(&control, 0, sizeof(control));
  control.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&control, encoded.data(), encoded.size()) == 0) {
    absl::Status corrupt = Corrupt(control.message);
    png_image_free(&control);
    return corrupt;
  }
  const bool has_alpha = (control.format & PNG_FORMAT_FLAG_ALPHA) != 0;
  control.format = PNG_FORMAT_RGBA;
  std::vector<uint8_t> rgba(size_t{control.width} * control.height * 4);
  if (png_image_finish_read(&control, nullptr, rgba.data(), 0, nullptr) == 0) {
    absl::Status corrupt = Corrupt(control.message);
    png_image_free(&control);
    return corrupt;
  }
  Image image{control.width, control.height, channels, Flatten(rgba, has_alpha, channels)};
  png_image_free(&control);
  return image;
}

}  // namespace millrace
