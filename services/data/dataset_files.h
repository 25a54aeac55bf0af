#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

// The files of a dataset, and what is in them.
struct DatasetFiles {
  enum class Format {
    kIdx,      // MNIST's: a file of images and one of labels, to train on and to test on
    kCifar10,  // records of a label and 3 x 32 x 32 pixels
  };

  std::filesystem::path directory;
  Format format = Format::kIdx;
  // IDX: images, labels. CIFAR-10: the batches in order.
  std::vector<std::filesystem::path> train, test;
  // EMNIST's: every image is stored with rows and columns exchanged.
  bool transposed = false;
};

// Tells the format by the files that are there:
//   MNIST, Fashion-MNIST, KMNIST ...  train-images-idx3-ubyte or train-images.idx3-ubyte, or either with .gz, in this
//                                     order, and so on for train-labels (idx1), t10k-images and t10k-labels
//   EMNIST                            emnist-letters-train-images-idx3-ubyte, ...,
//   emnist-letters-test-labels-idx1-ubyte,
//                                     each perhaps with .gz, of one of its six parts
//   CIFAR-10, binary version          data_batch_1.bin to data_batch_5.bin, test_batch.bin
// NOT_FOUND names the directory or what is missing from it; FAILED_PRECONDITION if it is more than one dataset.
absl::StatusOr<DatasetFiles> FindDatasetFiles(const std::filesystem::path& directory);

// <stem>-images and <stem>-labels, named as MNIST's files may be: images, labels. NOT_FOUND says what is missing.
absl::StatusOr<std::vector<std::filesystem::path>> FindIdxPair(const std::filesystem::path& directory,
                                                               const std::string& stem);

}  // namespace millrace
