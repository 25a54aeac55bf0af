#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

// The contents of one IDX file of unsigned bytes: MNIST's own format. Layout: bytes 0, 0, 0x08, rank; then `rank`
// big-endian uint32 sizes; then the values, last dimension fastest.
struct IdxArray {
  std::vector<uint32_t> sizes;  // one per dimension, all > 0
  std::unique_ptr<uint8_t[]> values;
  uint64_t value_count = 0;     // product of sizes
  std::vector<uint8_t> header;  // the file's first 4 + 4 * rank bytes, as they are

  std::span<const uint8_t> span() const { return {values.get(), value_count}; }
};

struct IdxLimits {
  uint64_t values_max = uint64_t{4} << 30;  // a header that declares more is refused
};

// Reads a file that must be an IDX array of unsigned bytes and of exactly that rank, raw or gzip (told by its content,
// not by its name). Strict: the file must hold what its header declares and not a byte more, and a gzip file must be
// one whole stream with the right CRC-32 and length. No allocation is larger than the header's product, and that is
// checked against the limit and against what a file of this size can hold. A gzip file is inflated straight to its
// place, so memory holds the values once.
//
// Errors name the file and the fault: NOT_FOUND, PERMISSION_DENIED; DATA_LOSS for contents that are not such an array.
// Any thread.
absl::StatusOr<IdxArray> ReadIdx(const std::filesystem::path& path, int rank, const IdxLimits& limits = {});

}  // namespace millrace
