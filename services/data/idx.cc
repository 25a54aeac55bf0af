#include "services/data/idx.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr uint8_t kUnsignedByte = 0x08;
// DEFLATE cannot make more than this of one byte (zlib's technical details: 1032:1).
constexpr uint64_t kDeflateRatioMax = 1032;

absl::Status Fault(const std::filesystem::path& path, absl::string_view fault) {
  return absl::DataLossError(absl::StrCat(path.string(), ": ", fault));
}

absl::Status SystemError(const std::filesystem::path& path, int error) {
  return absl::ErrnoToStatus(error, path.string());
}

// A file as a stream of the bytes that it holds or, if it is gzip, stands for.
class ByteStream {
 public:
  explicit ByteStream(std::filesystem::path path) : path_(std::move(path)) {}
  ~ByteStream() {
    if (inflating_) inflateEnd(&zlib_);
    if (file_ >= 0) close(file_);
  }
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  absl::Status Open();

  // Fills `out` as far as there are bytes: fewer only at the end, which for gzip means that the stream ended with the
  // right check values.
  absl::StatusOr<uint64_t> Read(std::span<uint8_t> out);

  // OK if nothing is left; reads no more than one byte to find out.
  absl::Status ExpectEnd();

  bool gzip() const { return inflating_; }
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  // Reads the next piece of the file. 0 at its end.
  absl::StatusOr<size_t> ReadFile(std::span<uint8_t> out);
  absl::StatusOr<uint64_t> Inflate(std::span<uint8_t> out);

  const std::filesystem::path path_;
  int file_ = -1;
  uint64_t file_bytes_ = 0;
  bool inflating_ = false;
  bool inflated_ = false;  // the gzip stream has ended
  z_stream zlib_ = {};
  std::array<uint8_t, 64 << 10> buffer_;  // compressed bytes that zlib_ has yet to take, or the sniffed first bytes
  std::span<const uint8_t> sniffed_;      // of a raw file: read already
};

absl::Status ByteStream::Open() {
  file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) return SystemError(path_, errno);
  struct stat info;
  if (fstat(file_, &info) != 0) return SystemError(path_, errno);
  if (!S_ISREG(info.st_mode)) return absl::FailedPreconditionError(absl::StrCat(path_.string(), ": not a file"));
  file_bytes_ = static_cast<uint64_t>(info.st_size);
  if (file_bytes_ == 0) return Fault(path_, "is empty");

  MILLRACE_ASSIGN_OR_RETURN(const size_t count, ReadFile(buffer_));
  if (count < 2 || buffer_[0] != 0x1f || buffer_[1] != 0x8b) {
    sniffed_ = std::span<const uint8_t>(buffer_).first(count);
    return absl::OkStatus();
  }
  zlib_.next_in = buffer_.data();
  zlib_.avail_in = static_cast<uInt>(count);
  constexpr int kGzipOnly = 16;  // added to the window size: expect gzip's header and check its trailer
  if (inflateInit2(&zlib_, MAX_WBITS + kGzipOnly) != Z_OK) return absl::ResourceExhaustedError("zlib: out of memory");
  inflating_ = true;
  return absl::OkStatus();
}

absl::StatusOr<size_t> ByteStream::ReadFile(std::span<uint8_t> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t count = read(file_, out.data() + done, out.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(path_, errno);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

absl::StatusOr<uint64_t> ByteStream::Read(std::span<uint8_t> out) {
  if (inflating_) return Inflate(out);
  const size_t taken = std::min(out.size(), sniffed_.size());
  std::copy_n(sniffed_.begin(), taken, out.begin());
  sniffed_ = sniffed_.subspan(taken);
  MILLRACE_ASSIGN_OR_RETURN(const size_t count, ReadFile(out.subspan(taken)));
  return taken + count;
}

absl::StatusOr<uint64_t> ByteStream::Inflate(std::span<uint8_t> out) {
  uint64_t done = 0;
  while (done < out.size() && !inflated_) {
    if (zlib_.avail_in == 0) {
      MILLRACE_ASSIGN_OR_RETURN(const size_t count, ReadFile(buffer_));
      if (count == 0) return Fault(path_, "the gzip stream is cut short");
      zlib_.next_in = buffer_.data();
      zlib_.avail_in = static_cast<uInt>(count);
    }
    // zlib counts in 32 bits.
    const auto room = static_cast<uInt>(std::min<uint64_t>(out.size() - done, 1 << 30));
    zlib_.next_out = out.data() + done;
    zlib_.avail_out = room;
    const int result = inflate(&zlib_, Z_NO_FLUSH);
    done += room - zlib_.avail_out;
    if (result == Z_STREAM_END) {
      inflated_ = true;
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      return Fault(path_, absl::StrCat("the gzip stream is damaged: ",
                                       zlib_.msg != nullptr ? zlib_.msg : "needs a preset dictionary"));
    }
  }
  return done;
}

absl::Status ByteStream::ExpectEnd() {
  std::array<uint8_t, 1> extra;
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t count, Read(extra));
  if (count > 0) return Fault(path_, "holds more bytes than its header declares");
  if (inflating_) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t rest, ReadFile(extra));
    if (zlib_.avail_in + rest > 0) return Fault(path_, "bytes follow the gzip stream");
  }
  return absl::OkStatus();
}

std::string TypeName(uint8_t code) {
  switch (code) {
    case 0x09:
      return "int8";
    case 0x0B:
      return "int16";
    case 0x0C:
      return "int32";
    case 0x0D:
      return "float32";
    case 0x0E:
      return "float64";
    default:
      return absl::StrCat("an unknown type 0x", absl::Hex(code, absl::kZeroPad2));
  }
}

absl::Status CheckMagic(const std::filesystem::path& path, std::span<const uint8_t> header, int rank) {
  if (header[0] != 0 || header[1] != 0) {
    const absl::string_view start(reinterpret_cast<const char*>(header.data()), header.size());
    return Fault(path, absl::StrCat("is neither gzip nor IDX: it begins with \"", absl::CHexEscape(start), "\"",
                                    header[0] == '<' ? " (a web page saved under this name?)" : ""));
  }
  if (header[2] != kUnsignedByte) {
    return Fault(path, absl::StrCat("holds ", TypeName(header[2]), " values, not unsigned bytes"));
  }
  if (header[3] != rank) {
    return Fault(path, absl::StrCat("has ", header[3], " dimensions, not ", rank,
                                    rank == 1        ? " (is it an images file?)"
                                    : header[3] == 1 ? " (is it a labels file?)"
                                                     : ""));
  }
  return absl::OkStatus();
}

uint32_t BigEndian32(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | uint32_t{bytes[3]};
}

// Fills sizes and value_count from the header.
absl::Status DecodeSizes(const std::filesystem::path& path, const IdxLimits& limits, IdxArray& array) {
  uint64_t product = 1;
  for (size_t offset = 4; offset < array.header.size(); offset += 4) {
    const uint32_t size = BigEndian32(array.header.data() + offset);
    array.sizes.push_back(size);
    if (size == 0) return Fault(path, absl::StrCat("dimension ", array.sizes.size() - 1, " has size 0"));
    if (product > limits.values_max / size) {
      return Fault(path, absl::StrCat("its header declares more than the limit of ", limits.values_max, " values"));
    }
    product *= size;
  }
  array.value_count = product;
  return absl::OkStatus();
}

absl::Status CheckFileSize(const std::filesystem::path& path, const ByteStream& stream, const IdxArray& array) {
  const uint64_t declared = array.header.size() + array.value_count;
  if (stream.gzip()) {
    if (declared / kDeflateRatioMax > stream.file_bytes()) {
      return Fault(path, absl::StrCat("its header declares ", declared, " bytes, more than ", stream.file_bytes(),
                                      " bytes of gzip can hold"));
    }
  } else if (declared != stream.file_bytes()) {
    return Fault(path, absl::StrCat("has ", stream.file_bytes(), " bytes, but its header declares ", declared));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<IdxArray> ReadIdx(const std::filesystem::path& path, int rank, const IdxLimits& limits) {
  ByteStream stream(path);
  MILLRACE_RETURN_IF_ERROR(stream.Open());

  IdxArray array;
  array.header.resize(4 + 4 * static_cast<size_t>(rank));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t header_bytes, stream.Read(array.header));
  const auto header = std::span<const uint8_t>(array.header).first(header_bytes);
  if (header_bytes >= 4) MILLRACE_RETURN_IF_ERROR(CheckMagic(path, header, rank));
  if (header_bytes < array.header.size()) {
    return Fault(path, absl::StrCat("ends inside its header: ", header_bytes, " of ", array.header.size(), " bytes"));
  }
  MILLRACE_RETURN_IF_ERROR(DecodeSizes(path, limits, array));
  MILLRACE_RETURN_IF_ERROR(CheckFileSize(path, stream, array));

  array.values = std::make_unique_for_overwrite<uint8_t[]>(array.value_count);
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t count, stream.Read({array.values.get(), array.value_count}));
  if (count < array.value_count) {
    return Fault(path, absl::StrCat("holds ", count, " values, but its header declares ", array.value_count));
  }
  MILLRACE_RETURN_IF_ERROR(stream.ExpectEnd());
  return array;
}

}  // namespace millrace
