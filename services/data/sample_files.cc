#include "services/data/sample_files.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/data/cifar.h"

namespace millrace {
namespace {

using LoadedSamples = absl::StatusOr<std::unique_ptr<MemorySamples>>;

LoadedSamples ReadIdxPair(const std::vector<std::filesystem::path>& paths, const IdxLimits& limits) {
  const std::filesystem::path& images_path = paths[0];
  const std::filesystem::path& labels_path = paths[1];
  // Labels first: they are small, and a fault in them need not wait for the images.
  MILLRACE_ASSIGN_OR_RETURN(IdxArray labels, ReadIdx(labels_path, 1, limits));
  MILLRACE_ASSIGN_OR_RETURN(IdxArray images, ReadIdx(images_path, 3, limits));
  if (images.sizes[0] != labels.sizes[0]) {
    return absl::DataLossError(absl::StrCat(images_path.string(), " has ", images.sizes[0], " images, but ",
                                            labels_path.string(), " has ", labels.sizes[0], " labels"));
  }
  return std::make_unique<MemorySamples>(ImageShape{1, images.sizes[1], images.sizes[2]}, images.sizes[0],
                                         std::move(images.values), std::move(labels.values));
}

}  // namespace

LoadedSamples ReadSamples(DatasetFiles::Format format, const std::vector<std::filesystem::path>& paths, bool transposed,
                          const IdxLimits& limits) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<MemorySamples> samples,
                            format == DatasetFiles::Format::kCifar10 ? ReadCifar10(paths) : ReadIdxPair(paths, limits));
  if (transposed) samples->Transpose();
  return samples;
}

}  // namespace millrace
