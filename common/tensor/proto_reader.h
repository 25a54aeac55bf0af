// Walks the fields of one encoded protobuf message in place, without copying or allocating.
//
//   ProtoReader reader(message.bytes());
//   while (reader.Next()) {
//     if (reader.Is(1, ProtoReader::kVarint)) step = reader.number();
//     else if (reader.Is(6, ProtoReader::kBytes)) values = reader.bytes();   // a submessage is
//     ProtoReader(reader.bytes())
//   }                                                // fields that are not asked for are skipped
//   if (!reader.ok()) ...                            // the bytes are not a well-formed message
//
// Format: https://protobuf.dev/programming-guides/encoding. Groups, which proto3 does not have, count as malformed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/tensor/byte_rope.h"

namespace millrace {

class ProtoReader {
 public:
  enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

  explicit ProtoReader(const ByteRope& message) : rest_(message) {}

  // Moves to the next field. False at the end of the message and at the first malformed byte.
  bool Next();
  bool ok() const { return ok_; }

  bool Is(uint32_t field, WireType type) const { return field == field_ && type == type_; }
  uint64_t number() const { return number_; }       // of the three fixed-size types
  const ByteRope& bytes() const { return bytes_; }  // of kBytes

 private:
  bool ReadVarint(int bytes_max, uint64_t* out);
  bool ReadFixed(size_t size, uint64_t* out);
  bool Fail();

  ByteRope rest_;
  bool ok_ = true;
  uint32_t field_ = 0;
  uint32_t type_ = 0;
  uint64_t number_ = 0;
  ByteRope bytes_;
};

}  // namespace millrace
