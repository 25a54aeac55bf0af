// Reading and writing safetensors files of float32 tensors (https://github.com/huggingface/safetensors): an 8-byte
// little-endian header length, a JSON header, then the tensors' bytes. Reading runs no code and trusts nothing.
//
//   auto written = WriteSafetensors(path, {{"weights", {n}, weights}}, {{"version", "812"}});
//   auto file = SafetensorsFile::Read(path);
//   std::span<const float> weights = file->Find("weights")->values;
//
// Threads: a file that was read is immutable. Ownership: tensors point into their SafetensorsFile.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/aligned_buffer.h"
#include "common/file_system.h"

namespace millrace {

struct TensorView {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> values;  // row-major; one per element of the shape
};

struct WrittenFile {
  uint64_t bytes = 0;
  std::string sha256;  // lower-case hexadecimal
};

// Writes `path` through a temporary name beside it, fsyncs file and directory: afterwards the file is complete and on
// disk, or it is as it was before. INVALID_ARGUMENT for an empty or repeated name or a shape that does not fit the
// values; RESOURCE_EXHAUSTED for a full disk; other codes as the system reports, each with the path.
absl::StatusOr<WrittenFile> WriteSafetensors(const std::string& path, const std::vector<TensorView>& tensors,
                                             const std::map<std::string, std::string>& metadata,
                                             FileSystem& files = RealFileSystem());

class SafetensorsFile {
 public:
  // NOT_FOUND if there is no file; DATA_LOSS, with path and fault, for anything that is not a well-formed file of
  // float32 tensors: a header that is no JSON or over 16 MiB, tensors that overlap, leave gaps or end before or beyond
  // the file.
  static absl::StatusOr<SafetensorsFile> Read(const std::string& path, FileSystem& files = RealFileSystem());

  const std::vector<TensorView>& tensors() const { return tensors_; }  // in file order
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const TensorView* Find(const std::string& name) const;  // nullptr if absent

 private:
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
  AlignedBuffer<float> data_;  // moving it does not move the bytes
};

}  // namespace millrace
