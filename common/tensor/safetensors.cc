#include "common/tensor/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint64_t kHeaderBytesMax = 16 << 20;
constexpr uint64_t kElementsMax = uint64_t{1} << 40;
constexpr char kMetadataKey[] = "__metadata__";

// Elements of a shape, or nullopt for one that is negative or absurdly large.
std::optional<uint64_t> ElementCount(const std::vector<int64_t>& shape) {
  uint64_t count = 1;
  for (int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (dimension > 0 && count > kElementsMax / static_cast<uint64_t>(dimension)) return std::nullopt;
    count *= static_cast<uint64_t>(dimension);
  }
  return count;
}

// --- Writing ---

absl::StatusOr<std::string> EncodeHeader(const std::vector<TensorView>& tensors,
                                         const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t offset = 0;
  for (const TensorView& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == kMetadataKey || header.contains(tensor.name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor name '", tensor.name, "' is reserved or there twice"));
    }
    if (ElementCount(tensor.shape) != tensor.values.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the shape of tensor ", tensor.name, " does not give its ", tensor.values.size(), " values"));
    }
    const uint64_t end = offset + tensor.values.size_bytes();
    header[tensor.name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the values are aligned in the file
  const uint64_t size = text.size();
  if (size > kHeaderBytesMax) return absl::InvalidArgumentError("safetensors header is over the limit of 16 MiB");
  std::string encoded(sizeof(size), '\0');
  std::memcpy(encoded.data(), &size, sizeof(size));
  return encoded + text;
}

// Writes to an open file and keeps count of what was written.
class DigestingWriter {
 public:
  explicit DigestingWriter(FileSystem::Writer* file) : file_(*file) {}

  absl::Status Write(std::span<const std::byte> data) {
    sha256_.Update(data);
    bytes_ += data.size();
    return file_.Append(data);
  }
  WrittenFile Finish() { return {bytes_, sha256_.FinishHex()}; }

 private:
  FileSystem::Writer& file_;
  Sha256 sha256_;
  uint64_t bytes_ = 0;
};

// --- Reading ---

absl::Status Damaged(const std::string& path, absl::string_view fault) {
  return absl::DataLossError(absl::StrCat(path, ": ", fault));
}

absl::Status ReadFully(FileSystem::Reader& file, std::byte* out, uint64_t size, const std::string& path) {
  while (size > 0) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t got, file.Read({out, size}));
    if (got == 0) return Damaged(path, "the file became shorter while it was read");
    out += got;
    size -= got;
  }
  return absl::OkStatus();
}

struct HeaderEntry {
  std::string name;
  std::vector<int64_t> shape;
  uint64_t begin;  // bytes from the end of the header
  uint64_t end;
};

// A duplicate key would make the library keep one of two tensors; the format forbids it.
std::optional<Json> ParseStrictly(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  bool duplicate = false;
  auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.resize(static_cast<size_t>(depth) + 1);
    if (event == Json::parse_event_t::object_start) keys.back().clear();
    if (event == Json::parse_event_t::key) {
      keys.resize(static_cast<size_t>(depth));
      duplicate |= !keys.back().insert(parsed.get<std::string>()).second;
    }
    return depth <= 4;  // the format has three levels; deeper ones are dropped and then found missing
  };
  Json parsed = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (duplicate || !parsed.is_object()) return std::nullopt;
  return parsed;
}

// nullopt unless the entry has exactly the form the format prescribes, in float32.
std::optional<HeaderEntry> ParseEntry(const std::string& name, const Json& json) {
  if (!json.is_object() || json.size() != 3 || json.value("dtype", Json()) != "F32") return std::nullopt;
  const Json shape = json.value("shape", Json()), offsets = json.value("data_offsets", Json());
  auto is_size = [](const Json& number) { return number.is_number_unsigned(); };
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), is_size)) return std::nullopt;
  if (!offsets.is_array() || offsets.size() != 2 || !std::all_of(offsets.begin(), offsets.end(), is_size)) {
    return std::nullopt;
  }
  HeaderEntry entry{name, {}, offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
  for (const Json& dimension : shape) {
    if (dimension.get<uint64_t>() > kElementsMax) return std::nullopt;
    entry.shape.push_back(dimension.get<int64_t>());
  }
  const std::optional<uint64_t> count = ElementCount(entry.shape);
  if (!count || entry.end < entry.begin || entry.end - entry.begin != *count * sizeof(float)) return std::nullopt;
  return entry;
}

struct Header {
  std::vector<HeaderEntry> entries;  // in file order, without gaps
  std::map<std::string, std::string> metadata;
};

absl::StatusOr<Header> ParseHeader(const std::string& text, uint64_t data_bytes, const std::string& path) {
  const std::optional<Json> json = ParseStrictly(text);
  if (!json) return Damaged(path, "the header is no JSON object with unique keys");
  Header header;
  for (const auto& [name, value] : json->items()) {
    if (name == kMetadataKey) {
      if (!value.is_object()) return Damaged(path, "__metadata__ is no object");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) return Damaged(path, absl::StrCat("__metadata__ ", key, " is no string"));
        header.metadata[key] = text_value.get<std::string>();
      }
      continue;
    }
    std::optional<HeaderEntry> entry = ParseEntry(name, value);
    if (!entry) return Damaged(path, absl::StrCat("tensor ", name, " is not described as float32 of its size"));
    header.entries.push_back(*std::move(entry));
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const auto& a, const auto& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t expected = 0;
  for (const HeaderEntry& entry : header.entries) {
    if (entry.begin != expected) return Damaged(path, absl::StrCat("tensor ", entry.name, " overlaps or leaves a gap"));
    expected = entry.end;
  }
  if (expected != data_bytes) {
    return Damaged(path, absl::StrCat("tensors take ", expected, " bytes and the file has ", data_bytes));
  }
  return header;
}

}  // namespace

absl::StatusOr<WrittenFile> WriteSafetensors(const std::string& path, const std::vector<TensorView>& tensors,
                                             const std::map<std::string, std::string>& metadata, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string header, EncodeHeader(tensors, metadata));
  const std::string temporary = path + ".tmp";
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<FileSystem::Writer> file, files.Create(temporary));
  absl::Cleanup abandon = [&] { files.RemoveTree(temporary).IgnoreError(); };
  DigestingWriter writer(file.get());
  MILLRACE_RETURN_IF_ERROR(writer.Write(std::as_bytes(std::span(header))));
  for (const TensorView& tensor : tensors) MILLRACE_RETURN_IF_ERROR(writer.Write(std::as_bytes(tensor.values)));
  MILLRACE_RETURN_IF_ERROR(file->Sync());
  MILLRACE_RETURN_IF_ERROR(file->Close());
  MILLRACE_RETURN_IF_ERROR(RenameDurably(temporary, path, files));
  std::move(abandon).Cancel();
  return writer.Finish();
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Read(const std::string& path, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<FileSystem::Reader> input, files.Open(path));
  const uint64_t file_bytes = input->size();

  uint64_t header_bytes = 0;
  if (file_bytes < sizeof(header_bytes)) return Damaged(path, "too short for a safetensors file");
  MILLRACE_RETURN_IF_ERROR(ReadFully(*input, reinterpret_cast<std::byte*>(&header_bytes), sizeof(header_bytes), path));
  if (header_bytes > kHeaderBytesMax || header_bytes > file_bytes - sizeof(header_bytes)) {
    return Damaged(path, absl::StrCat("a header of ", header_bytes, " bytes is over the limit or the file's end"));
  }
  std::string text(header_bytes, '\0');
  MILLRACE_RETURN_IF_ERROR(ReadFully(*input, reinterpret_cast<std::byte*>(text.data()), header_bytes, path));
  const uint64_t data_bytes = file_bytes - sizeof(header_bytes) - header_bytes;
  MILLRACE_ASSIGN_OR_RETURN(Header header, ParseHeader(text, data_bytes, path));

  SafetensorsFile file;
  file.metadata_ = std::move(header.metadata);
  file.data_ = AlignedBuffer<float>(data_bytes / sizeof(float));
  MILLRACE_RETURN_IF_ERROR(ReadFully(*input, reinterpret_cast<std::byte*>(file.data_.data()), data_bytes, path));
  for (HeaderEntry& entry : header.entries) {
    const auto values = std::as_const(file.data_)
                            .span()
                            .subspan(entry.begin / sizeof(float), (entry.end - entry.begin) / sizeof(float));
    file.tensors_.push_back({std::move(entry.name), std::move(entry.shape), values});
  }
  return file;
}

const TensorView* SafetensorsFile::Find(const std::string& name) const {
  const auto found =
      std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

}  // namespace millrace
