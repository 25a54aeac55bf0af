#include "services/data/dataset_files.h"

#include <cerrno>
#include <optional>
#include <set>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr int kCifarTrainBatches = 5;
constexpr absl::string_view kEmnistPrefix = "emnist-";
constexpr absl::string_view kEmnistTrainImages = "-train-images";

absl::StatusOr<bool> Exists(const fs::path& path) {
  std::error_code error;
  const bool exists = fs::exists(path, error);
  if (error) return absl::ErrnoToStatus(error.value(), path.string());
  return exists;
}

// `stem` is "train-images" or its like.
absl::StatusOr<fs::path> FindIdxFile(const fs::path& directory, absl::string_view stem, absl::string_view type) {
  for (const absl::string_view separator : {"-", "."}) {
    for (const absl::string_view suffix : {"", ".gz"}) {
      fs::path path = directory / absl::StrCat(stem, separator, type, suffix);
      MILLRACE_ASSIGN_OR_RETURN(const bool exists, Exists(path));
      if (exists) return path;
    }
  }
  return absl::NotFoundError(absl::StrCat(directory.string(), ": has no ", stem, "-", type, " or ", stem, ".", type,
                                          " (nor either with .gz)"));
}

absl::Status FindIdxFiles(absl::string_view train, absl::string_view test, DatasetFiles& files) {
  MILLRACE_ASSIGN_OR_RETURN(files.train, FindIdxPair(files.directory, std::string(train)));
  MILLRACE_ASSIGN_OR_RETURN(files.test, FindIdxPair(files.directory, std::string(test)));
  return absl::OkStatus();
}

absl::Status FindCifarFiles(DatasetFiles& files) {
  files.format = DatasetFiles::Format::kCifar10;
  for (int batch = 1; batch <= kCifarTrainBatches; ++batch) {
    files.train.push_back(files.directory / absl::StrCat("data_batch_", batch, ".bin"));
  }
  files.test = {files.directory / "test_batch.bin"};
  for (const std::vector<fs::path>* paths : {&files.train, &files.test}) {
    for (const fs::path& path : *paths) {
      MILLRACE_ASSIGN_OR_RETURN(const bool exists, Exists(path));
      if (!exists) {
        return absl::NotFoundError(
            absl::StrCat(files.directory.string(), ": has CIFAR-10 batches, but no ", path.filename().string()));
      }
    }
  }
  return absl::OkStatus();
}

struct Contents {
  bool idx = false;
  bool cifar = false;
  std::set<std::string> emnist;  // "letters", "balanced" ...
};

absl::StatusOr<Contents> LookInto(const fs::path& directory) {
  Contents contents;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    contents.idx |= absl::StartsWith(name, "train-") || absl::StartsWith(name, "t10k-");
    contents.cifar |= absl::StartsWith(name, "data_batch_") && absl::EndsWith(name, ".bin");
    const size_t part = name.find(std::string(kEmnistTrainImages));
    if (absl::StartsWith(name, kEmnistPrefix) && part != std::string::npos && part > kEmnistPrefix.size()) {
      contents.emnist.insert(name.substr(kEmnistPrefix.size(), part - kEmnistPrefix.size()));
    }
  }
  if (error) return absl::ErrnoToStatus(error.value(), directory.string());
  return contents;
}

}  // namespace

absl::StatusOr<std::vector<fs::path>> FindIdxPair(const fs::path& directory, const std::string& stem) {
  MILLRACE_ASSIGN_OR_RETURN(fs::path images, FindIdxFile(directory, absl::StrCat(stem, "-images"), "idx3-ubyte"));
  MILLRACE_ASSIGN_OR_RETURN(fs::path labels, FindIdxFile(directory, absl::StrCat(stem, "-labels"), "idx1-ubyte"));
  return std::vector<fs::path>{std::move(images), std::move(labels)};
}

absl::StatusOr<DatasetFiles> FindDatasetFiles(const fs::path& directory) {
  std::error_code error;
  const fs::file_status status = fs::status(directory, error);
  if (!fs::exists(status)) {
    return absl::ErrnoToStatus(error.value() != 0 ? error.value() : ENOENT, directory.string());
  }
  if (!fs::is_directory(status)) return absl::NotFoundError(absl::StrCat(directory.string(), ": is not a directory"));
  MILLRACE_ASSIGN_OR_RETURN(const Contents contents, LookInto(directory));
  if (contents.idx + contents.cifar + contents.emnist.size() > 1) {
    std::vector<std::string> found;
    if (contents.idx) found.push_back("files named as MNIST's");
    if (contents.cifar) found.push_back("CIFAR-10's");
    for (const std::string& part : contents.emnist) found.push_back(absl::StrCat("EMNIST's ", part));
    return absl::FailedPreconditionError(absl::StrCat(directory.string(), ": holds more than one dataset (",
                                                      absl::StrJoin(found, ", "),
                                                      "): give each a directory of its own"));
  }

  DatasetFiles files;
  files.directory = directory;
  if (contents.cifar) {
    MILLRACE_RETURN_IF_ERROR(FindCifarFiles(files));
  } else if (!contents.emnist.empty()) {
    const std::string stem = absl::StrCat(kEmnistPrefix, *contents.emnist.begin());
    MILLRACE_RETURN_IF_ERROR(FindIdxFiles(stem + "-train", stem + "-test", files));
    files.transposed = true;
  } else {
    MILLRACE_RETURN_IF_ERROR(FindIdxFiles("train", "t10k", files));
  }
  return files;
}

}  // namespace millrace
