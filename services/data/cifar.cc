#include "services/data/cifar.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr ImageShape kShape = {3, 32, 32};
constexpr uint64_t kRecordBytes = 1 + 3 * 32 * 32;
constexpr size_t kFileBytesMax = size_t{4} << 30;

absl::StatusOr<std::string> ReadRecords(const std::filesystem::path& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, kFileBytesMax));
  const auto fault = [&](auto... what) { return absl::DataLossError(absl::StrCat(path.string(), ": ", what...)); };
  if (bytes.empty()) return fault("is empty");
  if (bytes.size() % kRecordBytes != 0) {
    const bool gzip = absl::StartsWith(bytes, "\x1f\x8b");
    return fault("has ", bytes.size(), " bytes, not a whole number of records of ", kRecordBytes,
                 gzip ? " (it is compressed: unpack it)" : "");
  }
  for (size_t at = 0; at < bytes.size(); at += kRecordBytes) {
    const auto label = static_cast<uint8_t>(bytes[at]);
    if (label > 9) return fault("label ", label, " of record ", at / kRecordBytes, " is over 9");
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemorySamples>> ReadCifar10(std::span<const std::filesystem::path> paths) {
  std::vector<std::string> files;
  uint64_t count = 0;
  for (const std::filesystem::path& path : paths) {
    MILLRACE_ASSIGN_OR_RETURN(std::string bytes, ReadRecords(path));
    count += bytes.size() / kRecordBytes;
    files.push_back(std::move(bytes));
  }
  auto images = std::make_unique_for_overwrite<uint8_t[]>(count * kShape.bytes());
  auto labels = std::make_unique_for_overwrite<uint8_t[]>(count);
  uint8_t* image = images.get();
  uint8_t* label = labels.get();
  for (std::string& bytes : files) {
    for (size_t at = 0; at < bytes.size(); at += kRecordBytes) {
      *label++ = static_cast<uint8_t>(bytes[at]);
      image = std::copy_n(bytes.data() + at + 1, kShape.bytes(), image);
    }
    std::string().swap(bytes);
  }
  return std::make_unique<MemorySamples>(kShape, count, std::move(images), std::move(labels));
}

}  // namespace millrace
