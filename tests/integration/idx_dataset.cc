#include "tests/integration/idx_dataset.h"

#include <png.h>

#include <array>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace millrace {
namespace {

constexpr int kSide = 28;
constexpr int kClasses = 10;
using Image = std::array<uint8_t, kSide * kSide>;

Image MakeImage(int label, std::minstd_rand& random) {
  Image image;
  for (uint8_t& pixel : image) pixel = static_cast<uint8_t>(random() % 64);
  const int top = 2 + label / 5 * 14;
  const int left = 1 + label % 5 * 5;
  for (int y = top; y < top + 8; ++y) {
    for (int x = left; x < left + 5; ++x) image[y * kSide + x] = static_cast<uint8_t>(192 + random() % 64);
  }
  return image;
}

void AppendBigEndian(std::string& bytes, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
}

void WriteFile(const std::filesystem::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary) << bytes;
  if (std::filesystem::file_size(file) != bytes.size()) throw std::runtime_error("cannot write " + file.string());
}

void WriteSplit(const std::filesystem::path& directory, const std::string& prefix, int count,
                std::minstd_rand& random) {
  std::string images, labels;
  const auto size = static_cast<uint32_t>(count);
  for (const uint32_t word : {0x803u, size, uint32_t{kSide}, uint32_t{kSide}}) AppendBigEndian(images, word);
  for (const uint32_t word : {0x801u, size}) AppendBigEndian(labels, word);
  for (int i = 0; i < count; ++i) {
    const int label = static_cast<int>(random() % kClasses);
    const Image image = MakeImage(label, random);
    images.append(image.begin(), image.end());
    labels.push_back(static_cast<char>(label));
  }
  WriteFile(directory / (prefix + "-images-idx3-ubyte"), images);
  WriteFile(directory / (prefix + "-labels-idx1-ubyte"), labels);
}

}  // namespace

void WriteIdxDataset(const std::filesystem::path& directory, const IdxDataset& dataset) {
  std::filesystem::create_directories(directory);
  std::minstd_rand random(dataset.seed);
  WriteSplit(directory, "train", dataset.train_count, random);
  WriteSplit(directory, "t10k", dataset.test_count, random);
}

void WriteDigitPng(const std::filesystem::path& file, int label) {
  std::minstd_rand random(1);
  const Image image = MakeImage(label, random);
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = kSide;
  png.height = kSide;
  png.format = PNG_FORMAT_GRAY;
  if (png_image_write_to_file(&png, file.c_str(), 0, image.data(), kSide, nullptr) == 0) {
    throw std::runtime_error("cannot write " + file.string());
  }
}

}  // namespace millrace
