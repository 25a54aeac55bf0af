#include "services/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

struct KnownDataset {
  absl::string_view fingerprint;
  absl::string_view name;
};
constexpr KnownDataset kKnownDatasets[] = {
    {"b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a", "mnist"},
    {"14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214", "fashion-mnist"},
};

std::string NameOf(absl::string_view fingerprint, const fs::path& directory) {
  for (const KnownDataset& known : kKnownDatasets) {
    if (known.fingerprint == absl::string_view(fingerprint)) return std::string(known.name);
  }
  // A trailing slash and "." have no file name of their own.
  const std::string name = fs::absolute(directory / "x").lexically_normal().parent_path().filename().string();
  return name.empty() ? "dataset" : name;
}

// `content` is "images" or "labels".
absl::StatusOr<fs::path> FindFile(const fs::path& directory, absl::string_view part, absl::string_view content,
                                  absl::string_view type) {
  const std::string stem = absl::StrCat(part, "-", content);
  for (const absl::string_view separator : {"-", "."}) {
    for (const absl::string_view suffix : {"", ".gz"}) {
      fs::path path = directory / absl::StrCat(stem, separator, type, suffix);
      std::error_code error;
      if (fs::exists(path, error)) return path;
      if (error) return absl::ErrnoToStatus(error.value(), path.string());
    }
  }
  return absl::NotFoundError(absl::StrCat(directory.string(), ": has no ", stem, "-", type, " or ", stem, ".", type,
                                          " (nor either with .gz)"));
}

absl::StatusOr<Samples> LoadSamples(const fs::path& images_path, const fs::path& labels_path, const IdxLimits& limits) {
  // Labels first: they are small, and a fault in them need not wait for the images.
  MILLRACE_ASSIGN_OR_RETURN(IdxArray labels, ReadIdx(labels_path, 1, limits));
  MILLRACE_ASSIGN_OR_RETURN(IdxArray images, ReadIdx(images_path, 3, limits));
  if (images.sizes[0] != labels.sizes[0]) {
    return absl::DataLossError(absl::StrCat(images_path.string(), " has ", images.sizes[0], " images, but ",
                                            labels_path.string(), " has ", labels.sizes[0], " labels"));
  }
  return Samples(std::move(images), std::move(labels));
}

std::string Fingerprint(const Samples& train, const Samples& test) {
  Sha256 digest;
  for (const IdxArray* array : {&train.images(), &train.labels(), &test.images(), &test.labels()}) {
    digest.Update(std::as_bytes(std::span(array->header)));
    digest.Update(std::as_bytes(array->span()));
  }
  return digest.FinishHex();
}

}  // namespace

double PixelSums::Mean() const { return static_cast<double>(sum) / (255.0 * static_cast<double>(pixels)); }

double PixelSums::StandardDeviation() const {
  const double mean = Mean();
  const double mean_square = static_cast<double>(sum_of_squares) / (255.0 * 255.0 * static_cast<double>(pixels));
  return std::sqrt(std::max(0.0, mean_square - mean * mean));
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

absl::StatusOr<DatasetFiles> FindDatasetFiles(const fs::path& directory) {
  std::error_code error;
  const fs::file_status status = fs::status(directory, error);
  if (!fs::exists(status)) {
    return absl::ErrnoToStatus(error.value() != 0 ? error.value() : ENOENT, directory.string());
  }
  if (!fs::is_directory(status)) return absl::NotFoundError(absl::StrCat(directory.string(), ": is not a directory"));
  DatasetFiles files;
  MILLRACE_ASSIGN_OR_RETURN(files.train_images, FindFile(directory, "train", "images", "idx3-ubyte"));
  MILLRACE_ASSIGN_OR_RETURN(files.train_labels, FindFile(directory, "train", "labels", "idx1-ubyte"));
  MILLRACE_ASSIGN_OR_RETURN(files.test_images, FindFile(directory, "t10k", "images", "idx3-ubyte"));
  MILLRACE_ASSIGN_OR_RETURN(files.test_labels, FindFile(directory, "t10k", "labels", "idx1-ubyte"));
  return files;
}

absl::StatusOr<std::shared_ptr<const Dataset>> Dataset::Load(const DatasetFiles& files, const Options& options) {
  auto test_loading =
      std::async(std::launch::async, [&] { return LoadSamples(files.test_images, files.test_labels, options.limits); });
  absl::StatusOr<Samples> train = LoadSamples(files.train_images, files.train_labels, options.limits);
  absl::StatusOr<Samples> test = test_loading.get();
  if (!train.ok()) return train.status();
  if (!test.ok()) return test.status();
  if (train->height() != test->height() || train->width() != test->width()) {
    return absl::DataLossError(absl::StrCat(files.test_images.string(), " has images of ", test->height(), "x",
                                            test->width(), " pixels, but ", files.train_images.string(), " of ",
                                            train->height(), "x", train->width()));
  }

  std::shared_ptr<Dataset> dataset(new Dataset(*std::move(train), *std::move(test)));
  MILLRACE_RETURN_IF_ERROR(dataset->CheckLabels(files, options.classes));
  auto summing = std::async(std::launch::async, [&] { return SumPixels(dataset->train_.images().span()); });
  dataset->fingerprint_ = Fingerprint(dataset->train_, dataset->test_);
  dataset->train_sums_ = summing.get();
  dataset->name_ = NameOf(dataset->fingerprint_, files.train_images.parent_path());
  return dataset;
}

absl::Status Dataset::CheckLabels(const DatasetFiles& files, uint32_t classes) {
  const bool derived = classes == 0;
  if (derived) classes = uint32_t{*std::ranges::max_element(train_.labels().span())} + 1;
  train_class_counts_.assign(classes, 0);
  for (const Samples* samples : {&train_, &test_}) {
    const fs::path& path = samples == &train_ ? files.train_labels : files.test_labels;
    for (uint64_t i = 0; i < samples->count(); ++i) {
      if (samples->label(i) >= classes) {
        return absl::DataLossError(absl::StrCat(path.string(), ": label ", samples->label(i), " of sample ", i,
                                                " is over the largest of ", classes, " classes, ", classes - 1));
      }
      if (samples == &train_) ++train_class_counts_[samples->label(i)];
    }
  }
  if (classes < 2) return absl::DataLossError(absl::StrCat(files.train_labels.string(), ": every label is 0"));
  for (uint32_t label = 1; derived && label < classes; ++label) {
    if (train_class_counts_[label] == 0) {
      return absl::DataLossError(absl::StrCat(files.train_labels.string(), ": label ", classes - 1,
                                              " occurs but label ", label,
                                              " does not; if that is right, say so with --classes ", classes));
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace
