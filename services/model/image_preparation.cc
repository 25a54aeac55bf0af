#include "services/model/image_preparation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/model/image_decoder.h"

namespace millrace {
namespace {

constexpr ImageShape kMnistShape{.channels = 1, .height = 28, .width = 28};
constexpr uint32_t kMnistBox = 20;    // pixels; the ink's longer side
constexpr uint8_t kContrastMin = 24;  // grey levels between ground and ink below which there is no drawing
constexpr float kInkMin =
    255 * 0.15f;  // what counts as ink, after contrast is stretched: over paper grain and JPEG noise

// One plane of samples, rows from top to bottom.
struct Plane {
  uint32_t width = 0;
  uint32_t height = 0;
  std::vector<float> samples;

  Plane(uint32_t plane_width, uint32_t plane_height)
      : width(plane_width), height(plane_height), samples(size_t{plane_width} * plane_height) {}
  float& at(uint32_t x, uint32_t y) { return samples[size_t{y} * width + x]; }
  float at(uint32_t x, uint32_t y) const { return samples[size_t{y} * width + x]; }
};

// The input samples that make one output sample, along one axis.
struct Taps {
  uint32_t first = 0;
  std::vector<float> weights;  // sum 1
};

// Shrinking averages over the area that an output sample covers; enlarging interpolates linearly between sample
// centres.
std::vector<Taps> MakeTaps(uint32_t in, uint32_t out) {
  std::vector<Taps> taps(out);
  const double scale = static_cast<double>(in) / out;
  for (uint32_t i = 0; i < out; ++i) {
    if (scale >= 1) {
      const double begin = i * scale;
      const double end = std::min<double>((i + 1) * scale, in);
      taps[i].first = static_cast<uint32_t>(begin);
      for (uint32_t j = taps[i].first; j < end && j < in; ++j) {
        taps[i].weights.push_back(
            static_cast<float>((std::min<double>(j + 1, end) - std::max<double>(j, begin)) / (end - begin)));
      }
    } else {
      const double centre = std::clamp((i + 0.5) * scale - 0.5, 0.0, in - 1.0);
      taps[i].first = static_cast<uint32_t>(centre);
      const float right = static_cast<float>(centre - taps[i].first);
      taps[i].weights = {1 - right};
      if (taps[i].first + 1 < in) taps[i].weights.push_back(right);
    }
  }
  return taps;
}

Plane Resize(const Plane& in, uint32_t width, uint32_t height) {
  Plane wide(width, in.height);
  const std::vector<Taps> columns = MakeTaps(in.width, width);
  for (uint32_t y = 0; y < in.height; ++y) {
    for (uint32_t x = 0; x < width; ++x) {
      float sum = 0;
      for (uint32_t k = 0; k < columns[x].weights.size(); ++k)
        sum += columns[x].weights[k] * in.at(columns[x].first + k, y);
      wide.at(x, y) = sum;
    }
  }
  Plane out(width, height);
  const std::vector<Taps> rows = MakeTaps(in.height, height);
  for (uint32_t y = 0; y < height; ++y) {
    for (uint32_t k = 0; k < rows[y].weights.size(); ++k) {
      for (uint32_t x = 0; x < width; ++x) out.at(x, y) += rows[y].weights[k] * wide.at(x, rows[y].first + k);
    }
  }
  return out;
}

uint8_t ToByte(float sample) { return static_cast<uint8_t>(std::lround(std::clamp(sample, 0.0f, 255.0f))); }

uint8_t MedianOfBorder(const Image& grey) {
  std::array<uint32_t, 256> histogram{};
  uint32_t count = 0;
  const auto add = [&](uint32_t x, uint32_t y) {
    ++histogram[grey.pixels[size_t{y} * grey.width + x]];
    ++count;
  };
  for (uint32_t x = 0; x < grey.width; ++x) {
    add(x, 0);
    add(x, grey.height - 1);
  }
  for (uint32_t y = 0; y < grey.height; ++y) {
    add(0, y);
    add(grey.width - 1, y);
  }
  uint32_t below = 0;
  for (uint32_t level = 0; level < 256; ++level) {
    below += histogram[level];
    if (2 * below >= count) return static_cast<uint8_t>(level);
  }
  return 255;
}

struct Box {
  uint32_t left, top, right, bottom;  // right and bottom are one past the end
  uint32_t width() const { return right - left; }
  uint32_t height() const { return bottom - top; }
};

// `level(x, y)` of the whole picture as ink in [0, 255]; the box of what is above kInkMin. Never empty: some pixel is
// 255.
template <typename Level>
Box FindInk(const Image& grey, Level level) {
  Box box{grey.width, grey.height, 0, 0};
  for (uint32_t y = 0; y < grey.height; ++y) {
    for (uint32_t x = 0; x < grey.width; ++x) {
      if (level(x, y) < kInkMin) continue;
      box.left = std::min(box.left, x);
      box.right = std::max(box.right, x + 1);
      box.top = std::min(box.top, y);
      box.bottom = std::max(box.bottom, y + 1);
    }
  }
  return box;
}

// Where a drawing of `extent` samples along one axis begins in the field, for its centre of mass to be the field's
// centre.
uint32_t PlaceByMass(double centre_of_mass, uint32_t extent, uint32_t field) {
  const double start = std::round(field / 2.0 - centre_of_mass);
  return static_cast<uint32_t>(std::clamp<double>(start, 0, field - extent));
}

std::vector<uint8_t> CentreByMass(const Plane& drawing) {
  double mass = 0, moment_x = 0, moment_y = 0;
  for (uint32_t y = 0; y < drawing.height; ++y) {
    for (uint32_t x = 0; x < drawing.width; ++x) {
      const double sample = drawing.at(x, y);
      mass += sample;
      moment_x += sample * (x + 0.5);
      moment_y += sample * (y + 0.5);
    }
  }
  const uint32_t left = PlaceByMass(moment_x / mass, drawing.width, kMnistShape.width);
  const uint32_t top = PlaceByMass(moment_y / mass, drawing.height, kMnistShape.height);
  std::vector<uint8_t> field(kMnistShape.bytes());
  for (uint32_t y = 0; y < drawing.height; ++y) {
    for (uint32_t x = 0; x < drawing.width; ++x) {
      field[size_t{top + y} * kMnistShape.width + left + x] = ToByte(drawing.at(x, y));
    }
  }
  return field;
}

absl::StatusOr<std::vector<uint8_t>> PrepareAsMnist(const Image& grey, uint8_t ground) {
  // Ink is the distance from the ground towards the other end, stretched so that the strongest stroke is white.
  const bool light_ground = ground > 127;
  const auto distance = [&](uint32_t x, uint32_t y) {
    const int pixel = grey.pixels[size_t{y} * grey.width + x];
    return std::max(0, light_ground ? ground - pixel : pixel - ground);
  };
  int strongest = 0;
  for (uint32_t y = 0; y < grey.height; ++y) {
    for (uint32_t x = 0; x < grey.width; ++x) strongest = std::max(strongest, distance(x, y));
  }
  if (strongest < kContrastMin) {
    return absl::InvalidArgumentError("the image is empty: nothing in it stands out from its ground");
  }
  const auto ink = [&](uint32_t x, uint32_t y) { return distance(x, y) * 255.0f / strongest; };

  const Box box = FindInk(grey, ink);
  Plane drawing(box.width(), box.height());
  for (uint32_t y = 0; y < drawing.height; ++y) {
    for (uint32_t x = 0; x < drawing.width; ++x) drawing.at(x, y) = ink(box.left + x, box.top + y);
  }
  const double scale = static_cast<double>(kMnistBox) / std::max(box.width(), box.height());
  const auto scaled = [&](uint32_t side) {
    return std::clamp<uint32_t>(static_cast<uint32_t>(std::lround(side * scale)), 1, kMnistBox);
  };
  return CentreByMass(Resize(drawing, scaled(box.width()), scaled(box.height())));
}

std::vector<uint8_t> ResizePlainly(const Image& image, const ImageShape& shape) {
  std::vector<uint8_t> pixels;
  pixels.reserve(shape.bytes());
  for (uint32_t c = 0; c < shape.channels; ++c) {
    Plane plane(image.width, image.height);
    for (size_t i = 0; i < plane.samples.size(); ++i) plane.samples[i] = image.pixels[i * image.channels + c];
    if (image.width != shape.width || image.height != shape.height) plane = Resize(plane, shape.width, shape.height);
    for (float sample : plane.samples) pixels.push_back(ToByte(sample));
  }
  return pixels;
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> PrepareImage(const Image& image, const ImageShape& shape) {
  if (image.channels != shape.channels) {
    return absl::InternalError(
        absl::StrCat("an image of ", image.channels, " channels for a model of ", shape.channels));
  }
  if (shape == kMnistShape) {
    const uint8_t ground = MedianOfBorder(image);
    const bool exact_size = image.width == shape.width && image.height == shape.height;
    if (!exact_size || ground > 127) return PrepareAsMnist(image, ground);
  }
  return ResizePlainly(image, shape);
}

absl::StatusOr<std::vector<uint8_t>> RowOfPicture(std::span<const uint8_t> encoded, const ImageShape& shape) {
  MILLRACE_ASSIGN_OR_RETURN(const Image image, DecodeImage(encoded, shape.channels));
  return PrepareImage(image, shape);
}

}  // namespace millrace
