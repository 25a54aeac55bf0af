#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/data/dataset_files.h"
#include "services/data/idx.h"
#include "services/data/samples.h"

namespace millrace {

// Reads what `paths` (DatasetFiles::train, or test) hold. `transposed`: their images have rows and columns exchanged,
// which is put right. Errors of ReadIdx and ReadCifar10, and DATA_LOSS where images and labels are not as many. Any
// thread.
absl::StatusOr<std::unique_ptr<MemorySamples>> ReadSamples(DatasetFiles::Format format,
                                                           const std::vector<std::filesystem::path>& paths,
                                                           bool transposed, const IdxLimits& limits = {});

}  // namespace millrace
