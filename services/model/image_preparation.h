// From a picture of any size to one row of a model's input, the way MNIST was made from NIST's scans: grey, light ink
// on a black ground, the ink's bounding box scaled into 20 x 20 with its aspect kept, placed in 28 x 28 so that its
// centre of mass is the field's centre (http://yann.lecun.com/exdb/mnist).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/image_shape.h"
#include "services/model/image.h"

namespace millrace {

// `image` must have shape.channels channels. Returns uint8 [channels, height, width].
//  - of the shape's size already, with a dark ground (or in colour): taken as it is;
//  - for a 1 x 28 x 28 model: prepared as MNIST is. INVALID_ARGUMENT if the picture holds nothing but its ground;
//  - for any other model: resized, aspect not kept.
// The ground is the median of the picture's border. Pure; any thread.
absl::StatusOr<std::vector<uint8_t>> PrepareImage(const Image& image, const ImageShape& shape);

// The same from a PNG or JPEG; also INVALID_ARGUMENT for what DecodeImage refuses.
absl::StatusOr<std::vector<uint8_t>> RowOfPicture(std::span<const uint8_t> encoded, const ImageShape& shape);

}  // namespace millrace
