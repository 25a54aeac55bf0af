#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "services/data/cleaning.h"
#include "services/data/dataset_files.h"
#include "services/data/idx.h"
#include "services/data/samples.h"
#include "services/data/synthetic.h"

namespace millrace {

// Where samples come from: files, or a drawing hand.
using DatasetSource = std::variant<DatasetFiles, SyntheticOptions>;

// What `data_dir` names: a directory, of one of the formats in dataset_files.h, or "synthetic:..." as synthetic.h has
// it. Errors of FindDatasetFiles and ParseSynthetic. Reads no samples.
absl::StatusOr<DatasetSource> FindDataset(const std::string& data_dir);

// Whether rows and columns of all images are to be exchanged.
enum class Transpose {
  kAuto,  // if the format stores them so, as EMNIST does
  kYes,
  kNo,
};
// "auto", "yes" or "no".
absl::StatusOr<Transpose> ParseTranspose(std::string_view text);

// A whole dataset, checked and cleaned. Immutable once made: any thread.
class Dataset {
 public:
  struct Options {
    // Labels must be smaller than this. 0: as DeriveClasses has it.
    uint32_t classes = 0;
    IdxLimits limits = {};
    Transpose transpose = Transpose::kAuto;
    CleanPolicy clean = {};
  };

  // Reads files on two threads. Errors of ReadIdx, ReadCifar10 and Clean, and DATA_LOSS where files contradict each
  // other. Classes of a synthetic dataset are ten, and it needs no cleaning: `options` change nothing there.
  static absl::StatusOr<std::shared_ptr<const Dataset>> Load(const DatasetSource& source, const Options& options);

  // "mnist" and "fashion-mnist" are known by their fingerprints; others are called as their directory.
  const std::string& name() const { return name_; }
  // SHA-256 of all that is served. Of images of one channel, written as four IDX files one after the other, so that for
  // a directory of .gz files from which nothing was taken out it is what this prints:
  //   zcat train-images* train-labels* t10k-images* t10k-labels* | sha256sum
  // Of three channels, written as CIFAR-10's records. Of a synthetic dataset, of the generator's version and options.
  const std::string& fingerprint() const { return fingerprint_; }
  uint32_t classes() const { return static_cast<uint32_t>(report_.train_class_counts.size()); }

  const Samples& train() const { return *train_; }  // of the train files: validation samples included
  const Samples& test() const { return *test_; }
  // Of the train files. None if there are no pixels in memory to sum up.
  const std::optional<PixelSums>& train_sums() const { return train_sums_; }
  // By label.
  const std::vector<uint64_t>& train_class_counts() const { return report_.train_class_counts; }
  // What the samples take.
  uint64_t memory_bytes() const { return memory_bytes_; }

  // For people: counts, what cleaning found, what is odd. Some lines, each with its newline.
  std::string Report() const;

 private:
  Dataset() = default;

  static absl::StatusOr<std::shared_ptr<const Dataset>> LoadFiles(const DatasetFiles& files, const Options& options);
  static std::shared_ptr<const Dataset> Generate(const SyntheticOptions& options);

  std::unique_ptr<const Samples> train_;
  std::unique_ptr<const Samples> test_;
  std::string name_;
  std::string fingerprint_;
  std::optional<PixelSums> train_sums_;
  CleaningReport report_;
  std::vector<std::string> notes_;
  uint64_t memory_bytes_ = 0;
};

}  // namespace millrace
