#pragma once

#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

// Writes datasets in MNIST's format for tests. A target that uses this links ZLIB::ZLIB. Throws std::runtime_error.

inline void WriteBytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

// The bytes of an IDX file of unsigned bytes.
inline std::string IdxBytes(const std::vector<uint32_t>& sizes, std::string_view values) {
  std::string bytes = {0, 0, 0x08, static_cast<char>(sizes.size())};
  for (const uint32_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(size >> shift));
  }
  return bytes.append(values);
}

inline std::string Gzip(std::string_view bytes) {
  z_stream stream = {};
  constexpr int kGzip = 16;
  if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, MAX_WBITS + kGzip, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    throw std::runtime_error("deflateInit2");
  }
  std::string out(deflateBound(&stream, bytes.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  if (result != Z_STREAM_END) throw std::runtime_error("deflate");
  return out;
}

// A small dataset: sample i of a file has label i % classes, and its pixels say which sample and class it is, so that a
// network can learn it and a test can recognise it.
struct TinyDataset {
  uint32_t train_count = 100;
  uint32_t test_count = 20;
  uint32_t height = 4;
  uint32_t width = 4;  // height * width >= 4
  uint32_t classes = 10;

  std::string Images(uint32_t count, uint8_t part) const {
    std::string pixels;
    for (uint32_t sample = 0; sample < count; ++sample) {
      const uint32_t label = sample % classes;
      std::string image(uint64_t{height} * width, '\0');
      for (size_t i = 4; i < image.size(); ++i) image[i] = static_cast<char>(i % classes == label ? 255 : 0);
      image[0] = static_cast<char>(sample);
      image[1] = static_cast<char>(sample >> 8);
      image[2] = static_cast<char>(part);
      image[3] = static_cast<char>(label);
      pixels += image;
    }
    return IdxBytes({count, height, width}, pixels);
  }
  std::string Labels(uint32_t count) const {
    std::string labels;
    for (uint32_t sample = 0; sample < count; ++sample) labels.push_back(static_cast<char>(sample % classes));
    return IdxBytes({count}, labels);
  }

  // Four raw files with MNIST's own names.
  void Write(const std::filesystem::path& directory) const {
    WriteBytes(directory / "train-images-idx3-ubyte", Images(train_count, 0));
    WriteBytes(directory / "train-labels-idx1-ubyte", Labels(train_count));
    WriteBytes(directory / "t10k-images-idx3-ubyte", Images(test_count, 1));
    WriteBytes(directory / "t10k-labels-idx1-ubyte", Labels(test_count));
  }
};

}  // namespace millrace
