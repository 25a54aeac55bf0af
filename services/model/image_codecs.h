// The two decoders behind DecodeImage; contracts and limits are those of image_decoder.h.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/model/image.h"

namespace millrace {

bool IsPng(std::span<const uint8_t> encoded);
bool IsJpeg(std::span<const uint8_t> encoded);
absl::StatusOr<Image> DecodePng(std::span<const uint8_t> encoded, uint32_t channels);
absl::StatusOr<Image> DecodeJpeg(std::span<const uint8_t> encoded, uint32_t channels);

// OK if both sides are in [1, kImageSideMax].
absl::Status CheckImageSides(uint64_t width, uint64_t height);

}  // namespace millrace
