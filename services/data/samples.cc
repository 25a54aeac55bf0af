#include "services/data/samples.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <utility>

namespace millrace {

std::vector<uint8_t> Samples::image(uint64_t index) const {
  std::vector<uint8_t> image(image_bytes());
  CopyImage(index, image);
  return image;
}

MemorySamples::MemorySamples(const ImageShape& shape, uint64_t count, std::unique_ptr<uint8_t[]> images,
                             std::unique_ptr<uint8_t[]> labels)
    : Samples(count, shape), images_(std::move(images)), labels_(std::move(labels)) {}

void MemorySamples::CopyImage(uint64_t index, std::span<uint8_t> out) const {
  assert(out.size() == image_bytes());
  std::memcpy(out.data(), pixels(index).data(), out.size());
}

void MemorySamples::Transpose() {
  std::vector<uint8_t> turned(image_bytes());
  for (uint64_t index = 0; index < count_; ++index) {
    uint8_t* const image = images_.get() + index * image_bytes();
    const uint8_t* from = image;
    for (uint32_t channel = 0; channel < shape_.channels; ++channel) {
      uint8_t* const plane = turned.data() + size_t{channel} * shape_.height * shape_.width;
      for (uint32_t y = 0; y < shape_.height; ++y) {
        for (uint32_t x = 0; x < shape_.width; ++x) plane[size_t{x} * shape_.height + y] = *from++;
      }
    }
    std::ranges::copy(turned, image);
  }
  std::swap(shape_.height, shape_.width);
}

void MemorySamples::Remove(const std::vector<bool>& marked) {
  assert(marked.size() == count_);
  uint64_t kept = 0;
  for (uint64_t index = 0; index < count_; ++index) {
    if (marked[index]) continue;
    if (kept != index) {
      std::memcpy(images_.get() + kept * image_bytes(), pixels(index).data(), image_bytes());
      labels_[kept] = labels_[index];
    }
    ++kept;
  }
  count_ = kept;
}

double PixelSums::Mean() const { return static_cast<double>(sum) / (255.0 * static_cast<double>(pixels)); }

double PixelSums::StandardDeviation() const {
  const double mean = Mean();
  const double mean_square = static_cast<double>(sum_of_squares) / (255.0 * 255.0 * static_cast<double>(pixels));
  return std::sqrt(std::max(0.0, mean_square - mean * mean));
}

PixelSums& PixelSums::operator+=(const PixelSums& other) {
  pixels += other.pixels;
  sum += other.sum;
  sum_of_squares += other.sum_of_squares;
  return *this;
}

PixelSums& PixelSums::operator-=(const PixelSums& other) {
  pixels -= other.pixels;
  sum -= other.sum;
  sum_of_squares -= other.sum_of_squares;
  return *this;
}

PixelSums SumPixels(std::span<const uint8_t> pixels) {
  PixelSums sums;
  sums.pixels = pixels.size();
  // Runs short enough for 32 bits, which compilers vectorise.
  constexpr size_t kRun = 32768;
  for (size_t begin = 0; begin < pixels.size(); begin += kRun) {
    uint32_t sum = 0;
    uint32_t sum_of_squares = 0;
    for (const uint8_t pixel : pixels.subspan(begin, std::min(kRun, pixels.size() - begin))) {
      sum += pixel;
      sum_of_squares += uint32_t{pixel} * pixel;
    }
    sums.sum += sum;
    sums.sum_of_squares += sum_of_squares;
  }
  return sums;
}

}  // namespace millrace
