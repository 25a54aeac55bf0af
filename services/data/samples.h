#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/image_shape.h"

namespace millrace {

// Labelled images of one size: those to train and validate on, or those to test on. Immutable: any thread.
class Samples {
 public:
  virtual ~Samples() = default;

  uint64_t count() const { return count_; }
  const ImageShape& shape() const { return shape_; }
  uint64_t image_bytes() const { return shape_.bytes(); }

  virtual uint8_t label(uint64_t index) const = 0;
  // `out` has image_bytes().
  virtual void CopyImage(uint64_t index, std::span<uint8_t> out) const = 0;
  std::vector<uint8_t> image(uint64_t index) const;

 protected:
  Samples(uint64_t count, const ImageShape& shape) : count_(count), shape_(shape) {}

  uint64_t count_;
  ImageShape shape_;
};

// Samples that lie in memory.
class MemorySamples final : public Samples {
 public:
  // `images` and `labels` hold `count` of each, one after the other.
  MemorySamples(const ImageShape& shape, uint64_t count, std::unique_ptr<uint8_t[]> images,
                std::unique_ptr<uint8_t[]> labels);

  uint8_t label(uint64_t index) const override { return labels_[index]; }
  void CopyImage(uint64_t index, std::span<uint8_t> out) const override;

  std::span<const uint8_t> pixels(uint64_t index) const {
    return {images_.get() + index * image_bytes(), image_bytes()};
  }
  std::span<const uint8_t> all_pixels() const { return {images_.get(), count_ * image_bytes()}; }
  std::span<const uint8_t> labels() const { return {labels_.get(), count_}; }

  // While they are being made. Exchanges rows and columns of every image.
  void Transpose();
  // Takes out the samples marked, of which there are as many marks as samples; the others keep their order.
  void Remove(const std::vector<bool>& marked);

 private:
  std::unique_ptr<uint8_t[]> images_;
  std::unique_ptr<uint8_t[]> labels_;
};

// Exact sums over pixels, from which mean and deviation follow without rounding that depends on order.
struct PixelSums {
  uint64_t pixels = 0;
  uint64_t sum = 0;
  uint64_t sum_of_squares = 0;

  // Of pixel / 255.
  double Mean() const;
  double StandardDeviation() const;

  PixelSums& operator+=(const PixelSums& other);
  PixelSums& operator-=(const PixelSums& other);
};

PixelSums SumPixels(std::span<const uint8_t> pixels);

}  // namespace millrace
