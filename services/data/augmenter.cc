#include "services/data/augmenter.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/augmentation.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr uint32_t kTag = 0x6175676d;  // apart from every other use of the job's seed
constexpr int64_t kOne = 1 << 16;      // a pixel, or a factor of 1
constexpr int kBorderBefore = 1, kBorderAfter = 2;

int64_t Fixed(double value) { return std::llround(value * static_cast<double>(kOne)); }

// In [-strength, strength).
int64_t Symmetric(uint32_t word, int64_t strength) { return static_cast<int32_t>(word) * strength >> 31; }

// sin(x * pi / 2) for x in [0, 1], with 30 bits after the point: Taylor's series to the ninth power, off by less than
// 4e-6. The largest picture is not a pixel wider for it.
int64_t SineOfQuarter(int64_t x) {
  constexpr int64_t kCoefficients[] = {172'272, 5'026'995, 85'569'306, 693'598'668, 1'686'629'713};
  const int64_t square = x * x >> 30;
  int64_t sum = kCoefficients[0];
  for (int i = 1; i < 5; ++i) sum = kCoefficients[i] - (square * sum >> 30);
  return std::min<int64_t>(x * sum >> 30, 1 << 30);
}

// Of an angle in quarter turns with 30 bits after the point.
int64_t Sine(int64_t turn) {
  const int64_t quarter = turn >> 30 & 3;
  const int64_t rest = turn & ((1 << 30) - 1);
  const int64_t sine = SineOfQuarter(quarter % 2 == 0 ? rest : (1 << 30) - rest);
  return quarter < 2 ? sine : -sine;
}

uint32_t Low(uint64_t value) { return static_cast<uint32_t>(value); }
uint32_t High(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

}  // namespace

Augmenter::Spline::Spline(uint32_t size) {
  for (std::vector<int16_t>& of_one : weights) of_one.resize(size);
  uint32_t cell = 0;
  begins[0] = 0;
  // Pixel i's middle lies (2 i + 1) / (2 size) of the way along.
  const int64_t whole = int64_t{2} * size;
  for (uint32_t i = 0; i < size; ++i) {
    const int64_t position = (int64_t{2} * i + 1) * kCells;
    while (cell < position / whole) begins[++cell] = i;
    const int64_t t = position % whole;
    const auto weigh = [&](int64_t cubic) { return cubic * 4096 / (6 * whole * whole * whole); };
    const int64_t first = weigh((whole - t) * (whole - t) * (whole - t));
    const int64_t third = weigh(whole * whole * whole + 3 * whole * whole * t + 3 * whole * t * t - 3 * t * t * t);
    const int64_t fourth = weigh(t * t * t);
    weights[0][i] = static_cast<int16_t>(first);
    weights[1][i] = static_cast<int16_t>(4096 - first - third - fourth);
    weights[2][i] = static_cast<int16_t>(third);
    weights[3][i] = static_cast<int16_t>(fourth);
  }
  while (cell < kCells) begins[++cell] = size;
}

Augmenter::Augmenter(const v1::Augmentation& augmentation, uint64_t seed, const ImageShape& shape)
    : shape_(shape),
      seed_(seed),
      shift_(Fixed(augmentation.shift())),
      rotate_(Fixed(augmentation.rotate())),
      scale_(Fixed(augmentation.scale())),
      elastic_(Fixed(augmentation.elastic())),
      down_(shape.height),
      across_(shape.width) {}

absl::StatusOr<Augmenter> Augmenter::Create(const v1::Augmentation& augmentation, uint64_t seed,
                                            const ImageShape& shape) {
  MILLRACE_RETURN_IF_ERROR(CheckAugmentation(augmentation));
  if (shape.height > kSideMax || shape.width > kSideMax) {
    return absl::InvalidArgumentError(absl::StrCat("images of ", shape.height, "x", shape.width,
                                                   " pixels cannot be augmented: the limit is ", kSideMax, "x",
                                                   kSideMax));
  }
  return Augmenter(augmentation, seed, shape);
}

EpochAugmenter::EpochAugmenter(const Augmenter& augmenter, uint64_t epoch)
    : augmenter_(augmenter),
      padded_width_(augmenter.shape().width + kBorderBefore + kBorderAfter),
      padded_(augmenter.shape().channels * padded_width_ * (augmenter.shape().height + kBorderBefore + kBorderAfter)),
      bends_x_(augmenter.elastic_ == 0 ? 0 : size_t{kControls} * augmenter.shape().width),
      bends_y_(bends_x_.size()),
      x_(augmenter.shape().width),
      y_(augmenter.shape().width) {
  const auto words = Philox4x32({Low(epoch), High(epoch), 0, kTag}, {Low(augmenter.seed_), High(augmenter.seed_)});
  key_ = {words[0], words[1]};
}

void EpochAugmenter::Distort(uint64_t sample, std::span<uint8_t> image) {
  const ImageShape& shape = augmenter_.shape();
  assert(image.size() == shape.bytes());
  Draw(sample);
  CopyWithBorder(image);
  const size_t padded_plane = padded_.size() / shape.channels;
  const size_t plane = size_t{shape.height} * shape.width;
  for (uint32_t row = 0; row < shape.height; ++row) {
    LocateRow(row);
    for (uint32_t channel = 0; channel < shape.channels; ++channel) {
      SampleRow(padded_.data() + channel * padded_plane, image.data() + channel * plane + size_t{row} * shape.width);
    }
  }
}

void EpochAugmenter::Draw(uint64_t sample) {
  const auto block = [&](uint32_t index) { return Philox4x32({Low(sample), High(sample), index, kTag}, key_); };
  const auto words = block(0);
  shift_x_ = Symmetric(words[0], augmenter_.shift_);
  shift_y_ = Symmetric(words[1], augmenter_.shift_);
  const int64_t degrees = Symmetric(words[2], augmenter_.rotate_);
  const int64_t turn = degrees * (1 << 14) / 90;
  const int64_t scale = kOne + Symmetric(words[3], augmenter_.scale_);
  cosine_ = scale * Sine(turn + (1 << 30)) >> 30;
  sine_ = scale * Sine(turn) >> 30;
  if (augmenter_.elastic_ == 0) return;
  Lattice pulls_x, pulls_y;
  std::array<uint32_t, 4> pulls;
  for (uint32_t i = 0; i < pulls_x.size(); ++i) {
    if (i % 2 == 0) pulls = block(1 + i / 2);
    pulls_x[i] = static_cast<int16_t>(Symmetric(pulls[i % 2 * 2], augmenter_.elastic_) >> 7);
    pulls_y[i] = static_cast<int16_t>(Symmetric(pulls[i % 2 * 2 + 1], augmenter_.elastic_) >> 7);
  }
  BendAcross(pulls_x, bends_x_);
  BendAcross(pulls_y, bends_y_);
}

void EpochAugmenter::CopyWithBorder(std::span<const uint8_t> image) {
  const ImageShape& shape = augmenter_.shape();
  const uint8_t* from = image.data();
  for (uint32_t channel = 0; channel < shape.channels; ++channel) {
    uint8_t* to = padded_.data() + channel * (padded_.size() / shape.channels) + kBorderBefore * padded_width_;
    for (uint32_t row = 0; row < shape.height; ++row, from += shape.width, to += padded_width_) {
      std::copy_n(from, shape.width, to + kBorderBefore);
    }
  }
}

void EpochAugmenter::LocateRow(uint32_t row) {
  const ImageShape& shape = augmenter_.shape();
  // From the image's middle, in half pixels.
  const int64_t left = 1 - int64_t{shape.width};
  const int64_t down = 2 * int64_t{row} + 1 - shape.height;
  const auto x = static_cast<int32_t>(((cosine_ * left - sine_ * down) >> 1) - left * kOne / 2 + shift_x_);
  const auto y =
      static_cast<int32_t>(((sine_ * left + cosine_ * down) >> 1) + (shape.height - 1) * kOne / 2 + shift_y_);
  const auto step_x = static_cast<int32_t>(cosine_);
  const auto step_y = static_cast<int32_t>(sine_);
  for (int32_t i = 0; i < static_cast<int32_t>(shape.width); ++i) {
    x_[i] = x + step_x * i;
    y_[i] = y + step_y * i;
  }
  if (augmenter_.elastic_ == 0) return;
  uint32_t cell = 0;
  while (row >= augmenter_.down_.begins[cell + 1]) ++cell;
  Bend(bends_x_, row, cell, x_);
  Bend(bends_y_, row, cell, y_);
}

void EpochAugmenter::BendAcross(const Lattice& pulls, std::vector<int16_t>& bends) const {
  const Augmenter::Spline& across = augmenter_.across_;
  int16_t* out = bends.data();
  for (int row = 0; row < kControls; ++row, out += x_.size()) {
    for (uint32_t cell = 0; cell < Augmenter::kCells; ++cell) {
      const int16_t* const pull = &pulls[row * kControls + cell];
      for (uint32_t i = across.begins[cell]; i < across.begins[cell + 1]; ++i) {
        out[i] = static_cast<int16_t>((across.weights[0][i] * pull[0] + across.weights[1][i] * pull[1] +
                                       across.weights[2][i] * pull[2] + across.weights[3][i] * pull[3]) >>
                                      12);
      }
    }
  }
}

void EpochAugmenter::Bend(const std::vector<int16_t>& bends, uint32_t row, uint32_t cell,
                          std::vector<int32_t>& positions) const {
  const size_t width = positions.size();
  int32_t* const position = positions.data();
  const int16_t* const b0 = bends.data() + cell * width;
  const int16_t* const b1 = b0 + width;
  const int16_t* const b2 = b1 + width;
  const int16_t* const b3 = b2 + width;
  const auto& weights = augmenter_.down_.weights;
  const int16_t w0 = weights[0][row], w1 = weights[1][row], w2 = weights[2][row], w3 = weights[3][row];
  for (size_t i = 0; i < width; ++i) position[i] += (w0 * b0[i] + w1 * b1[i] + w2 * b2[i] + w3 * b3[i]) >> 5;
}

void EpochAugmenter::SampleRow(const uint8_t* padded, uint8_t* out) const {
  const auto width = static_cast<int32_t>(x_.size());
  // Farther out there are only zeros.
  const int32_t x_max = width << 16;
  const int32_t y_max = static_cast<int32_t>(augmenter_.shape().height) << 16;
  const auto stride = static_cast<int32_t>(padded_width_);
  const int32_t* const x = x_.data();
  const int32_t* const y = y_.data();
  const uint8_t* const origin = padded + kBorderBefore * stride + kBorderBefore;
  for (int32_t i = 0; i < width; ++i) {
    const int32_t from_x = std::clamp(x[i], -1 << 16, x_max);
    const int32_t from_y = std::clamp(y[i], -1 << 16, y_max);
    const uint8_t* const above = origin + (from_y >> 16) * stride + (from_x >> 16);
    const uint8_t* const below = above + stride;
    const int32_t right = from_x >> 8 & 255, lower = from_y >> 8 & 255;
    const int32_t upper_value = above[0] * 256 + (above[1] - above[0]) * right;
    const int32_t lower_value = below[0] * 256 + (below[1] - below[0]) * right;
    out[i] = static_cast<uint8_t>((upper_value * 256 + (lower_value - upper_value) * lower + (1 << 15)) >> 16);
  }
}

}  // namespace millrace
