#pragma once

#include <filesystem>
#include <span>

#include "absl/status/statusor.h"
#include "services/data/samples.h"

namespace millrace {

// Reads files of CIFAR-10's binary version, one after the other, into one set of samples. A record is a label and the
// red, the green and the blue plane of a 32 x 32 image, in rows (https://www.cs.toronto.edu/~kriz/cifar.html).
//
// Errors name the file and the fault: NOT_FOUND, PERMISSION_DENIED; DATA_LOSS for a file that is empty, compressed, or
// no whole number of records, or for a label over 9. Any thread.
absl::StatusOr<std::unique_ptr<MemorySamples>> ReadCifar10(std::span<const std::filesystem::path> paths);

}  // namespace millrace
