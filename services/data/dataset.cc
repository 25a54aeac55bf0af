#include "services/data/dataset.h"

#include <filesystem>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"
#include "common/status_macros.h"
#include "services/data/sample_files.h"

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

using LoadedSamples = absl::StatusOr<std::unique_ptr<MemorySamples>>;

LoadedSamples ReadSplit(const DatasetFiles& files, const std::vector<fs::path>& paths,
                        const Dataset::Options& options) {
  const bool transposed =
      options.transpose == Transpose::kYes || (options.transpose == Transpose::kAuto && files.transposed);
  return ReadSamples(files.format, paths, transposed, options.limits);
}

void AddIdxHeader(std::initializer_list<uint64_t> sizes, Sha256& digest) {
  std::string header = {0, 0, 0x08, static_cast<char>(sizes.size())};
  for (const uint64_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) header.push_back(static_cast<char>(size >> shift));
  }
  digest.Update(header);
}

std::string Fingerprint(const MemorySamples& train, const MemorySamples& test) {
  Sha256 digest;
  for (const MemorySamples* samples : {&train, &test}) {
    const ImageShape& shape = samples->shape();
    if (shape.channels == 1) {
      AddIdxHeader({samples->count(), shape.height, shape.width}, digest);
      digest.Update(std::as_bytes(samples->all_pixels()));
      AddIdxHeader({samples->count()}, digest);
      digest.Update(std::as_bytes(samples->labels()));
      continue;
    }
    for (uint64_t index = 0; index < samples->count(); ++index) {
      digest.Update(std::as_bytes(samples->labels().subspan(index, 1)));
      digest.Update(std::as_bytes(samples->pixels(index)));
    }
  }
  return digest.FinishHex();
}

std::string PixelsText(const ImageShape& shape) {
  return absl::StrCat(shape.channels == 1 ? "" : absl::StrCat(shape.channels, "x"), shape.height, "x", shape.width);
}

}  // namespace

absl::StatusOr<DatasetSource> FindDataset(const std::string& data_dir) {
  if (IsSynthetic(data_dir)) {
    MILLRACE_ASSIGN_OR_RETURN(SyntheticOptions options, ParseSynthetic(data_dir));
    return options;
  }
  MILLRACE_ASSIGN_OR_RETURN(DatasetFiles files, FindDatasetFiles(data_dir));
  return files;
}

absl::StatusOr<Transpose> ParseTranspose(std::string_view text) {
  if (text == "auto") return Transpose::kAuto;
  if (text == "yes") return Transpose::kYes;
  if (text == "no") return Transpose::kNo;
  return absl::InvalidArgumentError(
      absl::StrCat("'", absl::string_view(text.data(), text.size()), "' is none of auto, yes, no"));
}

absl::StatusOr<std::shared_ptr<const Dataset>> Dataset::Load(const DatasetSource& source, const Options& options) {
  if (const auto* synthetic = std::get_if<SyntheticOptions>(&source)) return Generate(*synthetic);
  return LoadFiles(std::get<DatasetFiles>(source), options);
}

absl::StatusOr<std::shared_ptr<const Dataset>> Dataset::LoadFiles(const DatasetFiles& files, const Options& options) {
  auto test_loading = std::async(std::launch::async, [&] { return ReadSplit(files, files.test, options); });
  LoadedSamples read_train = ReadSplit(files, files.train, options);
  LoadedSamples read_test = test_loading.get();
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<MemorySamples> train, std::move(read_train));
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<MemorySamples> test, std::move(read_test));
  if (train->shape() != test->shape()) {
    return absl::DataLossError(absl::StrCat(files.test.front().string(), " has images of ", PixelsText(test->shape()),
                                            " pixels, but ", files.train.front().string(), " of ",
                                            PixelsText(train->shape())));
  }
  const uint32_t classes = options.classes != 0 ? options.classes : DeriveClasses(*train, options.clean);
  if (classes < 2) return absl::DataLossError(absl::StrCat(files.directory.string(), ": every train label is 0"));

  std::shared_ptr<Dataset> dataset(new Dataset());
  absl::StatusOr<CleaningReport> report = Clean(*train, *test, classes, options.clean);
  if (!report.ok()) {
    return absl::Status(report.status().code(),
                        absl::StrCat(files.directory.string(), ": ", report.status().message(),
                                     options.classes == 0 ? "; --classes tells how many there are" : ""));
  }
  dataset->report_ = *std::move(report);
  if (dataset->train_class_counts()[0] == 0 && dataset->report_.test_class_counts[0] == 0) {
    dataset->notes_.emplace_back(
        "labels count from 1: class 0 has no samples, and one output of a network goes unused");
  }
  if (options.transpose == Transpose::kAuto && files.transposed) {
    dataset->notes_.emplace_back(
        "EMNIST's names: rows and columns of its images are exchanged (--transpose no: as stored)");
  }

  auto summing = std::async(std::launch::async, [&] { return SumPixels(train->all_pixels()); });
  dataset->fingerprint_ = Fingerprint(*train, *test);
  dataset->train_sums_ = summing.get();
  dataset->name_ = NameOf(dataset->fingerprint_, files.directory);
  dataset->memory_bytes_ = (train->count() + test->count()) * (train->image_bytes() + 1);
  dataset->train_ = std::move(train);
  dataset->test_ = std::move(test);
  return dataset;
}

std::shared_ptr<const Dataset> Dataset::Generate(const SyntheticOptions& options) {
  std::shared_ptr<Dataset> dataset(new Dataset());
  dataset->name_ = "synthetic";
  dataset->fingerprint_ = SyntheticFingerprint(options);
  dataset->report_.train_class_counts = SyntheticClassCounts(options.train);
  dataset->report_.test_class_counts = SyntheticClassCounts(options.test);
  dataset->notes_.emplace_back(absl::StrCat("drawn as it is asked for: ", FormatSynthetic(options)));
  dataset->train_ = MakeSyntheticSamples(options, SyntheticSplit::kTrain);
  dataset->test_ = MakeSyntheticSamples(options, SyntheticSplit::kTest);
  return dataset;
}

std::string Dataset::Report() const {
  std::string text = absl::StrCat(
      "dataset: ", name_, "\nfingerprint: ", fingerprint_, "\ntrain files: ", train_->count(),
      " samples\ntest files: ", test_->count(),
      " samples\nimages: ", train_->shape().channels == 1 ? "" : absl::StrCat(train_->shape().channels, " x "),
      train_->shape().height, " x ", train_->shape().width, " pixels\nclasses: ", classes(),
      "\n  train samples by label: ", absl::StrJoin(report_.train_class_counts, " "),
      "\n  test samples by label: ", absl::StrJoin(report_.test_class_counts, " "), "\n");
  if (train_sums_.has_value()) {
    absl::StrAppend(&text, "train files' pixel / 255: mean ", train_sums_->Mean(), ", standard deviation ",
                    train_sums_->StandardDeviation(), "\n");
  }
  absl::StrAppend(&text, "cleaning: ", report_.dropped(), " samples taken out\n", report_.ToString());
  for (const std::string& note : notes_) absl::StrAppend(&text, "note: ", note, "\n");
  return text;
}

}  // namespace millrace
