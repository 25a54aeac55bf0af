#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/data/idx.h"

namespace millrace {

// Exact sums over pixels, from which mean and deviation follow without rounding that depends on order.
struct PixelSums {
  uint64_t pixels = 0;
  uint64_t sum = 0;
  uint64_t sum_of_squares = 0;

  // Of pixel / 255.
  double Mean() const;
  double StandardDeviation() const;
};

PixelSums SumPixels(std::span<const uint8_t> pixels);

// Labelled images of one size, as the train files or the test files hold them. Immutable: any thread.
class Samples {
 public:
  // `images` has three dimensions and `labels` one, of the same count.
  Samples(IdxArray images, IdxArray labels) : images_(std::move(images)), labels_(std::move(labels)) {}

  uint64_t count() const { return labels_.value_count; }
  uint32_t height() const { return images_.sizes[1]; }
  uint32_t width() const { return images_.sizes[2]; }
  uint64_t image_bytes() const { return uint64_t{height()} * width(); }

  // One image, rows of uint8 pixels.
  std::span<const uint8_t> image(uint64_t index) const {
    return images_.span().subspan(index * image_bytes(), image_bytes());
  }
  uint8_t label(uint64_t index) const { return labels_.values[index]; }

  const IdxArray& images() const { return images_; }
  const IdxArray& labels() const { return labels_; }

 private:
  IdxArray images_;
  IdxArray labels_;
};

// The four files of a dataset in MNIST's format.
struct DatasetFiles {
  std::filesystem::path train_images;
  std::filesystem::path train_labels;
  std::filesystem::path test_images;
  std::filesystem::path test_labels;
};

// Finds `train-images-idx3-ubyte`, `train-images.idx3-ubyte` or either with .gz, in this order, and so on for
// `train-labels` (idx1), `t10k-images` and `t10k-labels`. NOT_FOUND names the directory or what is missing from it.
absl::StatusOr<DatasetFiles> FindDatasetFiles(const std::filesystem::path& directory);

// A whole dataset in memory, checked. Immutable once made: any thread.
class Dataset {
 public:
  struct Options {
    // Labels must be smaller than this. 0: as many classes as the largest train label asks for, and then a class below
    // it without any train sample is taken for a damaged label and refused (class 0 may be empty: some sets count
    // from 1).
    uint32_t classes = 0;
    IdxLimits limits = {};
  };

  // Reads `files` on two threads. Errors of ReadIdx, and DATA_LOSS where the files contradict each other.
  static absl::StatusOr<std::shared_ptr<const Dataset>> Load(const DatasetFiles& files, const Options& options);

  // "mnist" and "fashion-mnist" are known by their fingerprints; others are called as their directory.
  const std::string& name() const { return name_; }
  // SHA-256 of the four files, uncompressed, one after the other: what this prints for a directory of .gz files:
  //   zcat train-images* train-labels* t10k-images* t10k-labels* | sha256sum
  const std::string& fingerprint() const { return fingerprint_; }
  uint32_t classes() const { return static_cast<uint32_t>(train_class_counts_.size()); }

  const Samples& train() const { return train_; }  // of the train files: validation samples included
  const Samples& test() const { return test_; }
  const PixelSums& train_sums() const { return train_sums_; }
  // By label.
  const std::vector<uint64_t>& train_class_counts() const { return train_class_counts_; }

 private:
  Dataset(Samples train, Samples test) : train_(std::move(train)), test_(std::move(test)) {}

  absl::Status CheckLabels(const DatasetFiles& files, uint32_t classes);

  Samples train_;
  Samples test_;
  std::string name_;
  std::string fingerprint_;
  PixelSums train_sums_;
  std::vector<uint64_t> train_class_counts_;
};

}  // namespace millrace
