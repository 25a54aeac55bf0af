// PNG and JPEG bytes of a stranger to pixels.
//
// Threads: DecodeImage has no state and may run on any number of threads.
// Errors: INVALID_ARGUMENT for everything that is wrong with the bytes (unknown format, over a limit, truncated, a
// checksum that does not match, corrupt entropy-coded data); the message says what. Nothing else is returned. Sizes are
// checked before memory for pixels is taken; one call may still need some 100 MB for the largest picture, so callers
// bound how many run at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "services/model/image.h"

namespace millrace {

inline constexpr size_t kEncodedImageBytesMax = 16u << 20;
inline constexpr uint32_t kImageSideMax = 4096;  // pixels

// channels: 1 (grey) or 3 (colour); the picture is converted to it whatever it was. 16-bit samples are reduced to 8,
// palettes are expanded. What is transparent becomes white where the drawing is dark, and black where it is light, so
// that a drawing on a transparent ground stays visible.
absl::StatusOr<Image> DecodeImage(std::span<const uint8_t> encoded, uint32_t channels);

}  // namespace millrace
