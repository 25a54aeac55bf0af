#include "common/tensor/proto_reader.h"

namespace millrace {
namespace {

// As the stock parser has it: tags and sizes are 32-bit numbers.
constexpr int kNumberBytesMax = 10;
constexpr int kTagBytesMax = 5;

}  // namespace

bool ProtoReader::Fail() {
  ok_ = false;
  field_ = 0;
  return false;
}

bool ProtoReader::ReadVarint(int bytes_max, uint64_t* out) {
  uint64_t value = 0;
  for (int shift = 0; shift < 7 * bytes_max; shift += 7) {
    if (rest_.empty()) return false;
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.RemovePrefix(1);
    value |= uint64_t{byte & 0x7fu} << shift;  // of the tenth byte one bit counts, as in protobuf
    if (byte < 0x80) {
      *out = value;
      return true;
    }
  }
  return false;
}

bool ProtoReader::ReadFixed(size_t size, uint64_t* out) {
  if (rest_.size() < size) return false;
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value |= uint64_t{static_cast<uint8_t>(rest_.front())} << (8 * i);
    rest_.RemovePrefix(1);
  }
  *out = value;
  return true;
}

bool ProtoReader::Next() {
  if (!ok_ || rest_.empty()) return false;
  uint64_t tag;
  if (!ReadVarint(kTagBytesMax, &tag)) return Fail();
  field_ = static_cast<uint32_t>(tag) >> 3;
  type_ = static_cast<uint32_t>(tag) & 7;
  if (field_ == 0) return Fail();
  switch (type_) {
    case kVarint:
      return ReadVarint(kNumberBytesMax, &number_) || Fail();
    case kFixed64:
      return ReadFixed(8, &number_) || Fail();
    case kFixed32:
      return ReadFixed(4, &number_) || Fail();
    case kBytes: {
      uint64_t size;
      if (!ReadVarint(kTagBytesMax, &size) || size > rest_.size()) return Fail();
      bytes_ = rest_.First(size);
      rest_.RemovePrefix(size);
      return true;
    }
    default:
      return Fail();
  }
}

}  // namespace millrace
