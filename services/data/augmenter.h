#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/random.h"
#include "millrace/v1/data.pb.h"
#include "services/data/samples.h"

namespace millrace {

// Shifts, turns, scales and bends images at random: a pure function of (strengths, seed, epoch, sample id, image), in
// whole numbers only, so that every machine, compiler and instruction set makes the same bytes (no libm, no rounding
// mode, no fused multiply-add). Its values are pinned by golden tests.
//
//   epoch key: the first two words of Philox4x32-10 with counter {low32(epoch), high32(epoch), 0, kTag} and the seed as
//     key; word j of a sample: word j % 4 of Philox4x32-10 with counter {low32(id), high32(id), j / 4, kTag} and the
//     epoch's key
//   strengths: round(65536 * field); a draw from word w: (int32(w) * strength) >> 31, in [-strength, strength), with
//     16 bits after the point. Words 0 to 3: shift x, shift y, angle, scale. From word 4 on, the pulls of a lattice of
//     7 x 7 control points, by rows, x before y
//   source of output pixel (x, y), in pixels from the first one's centre:
//     centre + (1 + scale) * rotation(angle) * ((x, y) - centre) + shift + bend(x, y)
//   bend: the uniform cubic B-spline over the pulls, 4 x 4 cells across the image (elastic deformation in the spirit of
//     P. Simard et al., "Best practices for convolutional neural networks", ICDAR 2003: smooth random displacements,
//     here from a coarse lattice instead of a Gaussian filter over one per pixel, which costs far less)
//   value there: bilinear, with 8 bits of position; 0 outside
// The details, like the widths of intermediate values, are in the source.
//
// Immutable: any thread.
class Augmenter {
 public:
  static constexpr uint32_t kSideMax = 4096;  // pixels

  // INVALID_ARGUMENT names the field and its limits, or an image side over kSideMax.
  static absl::StatusOr<Augmenter> Create(const v1::Augmentation& augmentation, uint64_t seed, const ImageShape& shape);

  const ImageShape& shape() const { return shape_; }

 private:
  friend class EpochAugmenter;
  static constexpr int kCells = 4;
  static constexpr int kControls = kCells + 3;  // all corners of the cells, and one more on either side

  // Of the pixels of one direction: in which cell each lies, and what the four control points around it weigh there.
  struct Spline {
    explicit Spline(uint32_t size);
    uint32_t begins[kCells + 1];      // of the cells, in pixels
    std::vector<int16_t> weights[4];  // by control point, then by pixel; with 12 bits after the point, sum 1
  };

  Augmenter(const v1::Augmentation& augmentation, uint64_t seed, const ImageShape& shape);

  ImageShape shape_;
  uint64_t seed_;
  // With 16 bits after the point.
  int64_t shift_, rotate_, scale_, elastic_;
  Spline down_, across_;
};

// An Augmenter at work on images of one epoch. Not thread-safe: it has a work space.
class EpochAugmenter {
 public:
  // `augmenter` must outlive it.
  EpochAugmenter(const Augmenter& augmenter, uint64_t epoch);

  // Distorts `image`, of the augmenter's shape, in place. `sample` is the image's number in the train files.
  void Distort(uint64_t sample, std::span<uint8_t> image);

 private:
  static constexpr int kControls = Augmenter::kControls;
  // A lattice of pulls in one direction, in pixels with 9 bits after the point.
  using Lattice = std::array<int16_t, size_t{kControls} * kControls>;

  void Draw(uint64_t sample);
  void CopyWithBorder(std::span<const uint8_t> image);
  // Sets x_ and y_ to where the pixels of a row come from, with 16 bits after the point.
  void LocateRow(uint32_t row);
  // The spline is a product of one along the rows, done once an image, and one along the columns.
  void BendAcross(const Lattice& pulls, std::vector<int16_t>& bends) const;
  void Bend(const std::vector<int16_t>& bends, uint32_t row, uint32_t cell, std::vector<int32_t>& positions) const;
  void SampleRow(const uint8_t* padded, uint8_t* out) const;

  const Augmenter& augmenter_;
  const size_t padded_width_;
  PhiloxKey key_;
  std::vector<uint8_t> padded_;  // each channel with a border of zeros: 1 before, 2 after
  // Of the present image, with 16 bits after the point.
  int64_t cosine_ = 0, sine_ = 0;  // times the scale
  int64_t shift_x_ = 0, shift_y_ = 0;
  std::vector<int16_t> bends_x_, bends_y_;  // of each row of control points, by column; with 9 bits after the point
  std::vector<int32_t> x_, y_;
};

}  // namespace millrace
