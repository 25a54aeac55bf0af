#include "common/tensor/wire.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/aligned_buffer.h"
#include "common/tensor/proto_reader.h"
#include "google/protobuf/io/coded_stream.h"

namespace millrace {
namespace {

using google::protobuf::io::CodedOutputStream;

// The encoded fields in front of the values. Fields that are zero are left out, as the stock encoder does.
class FieldWriter {
 public:
  void Number(int field, uint64_t value) {
    if (value == 0) return;
    Tag(field, ProtoReader::kVarint);
    Varint(value);
  }
  void Bytes(int field, size_t size) {  // the bytes themselves follow in another slice
    Tag(field, ProtoReader::kBytes);
    Varint(size);
  }
  void Append(const FieldWriter& other) {
    std::copy(other.data_.begin(), other.data_.begin() + other.size_, data_.begin() + size_);
    size_ += other.size_;
  }
  const uint8_t* data() const { return data_.data(); }
  size_t size() const { return size_; }

 private:
  void Tag(int field, ProtoReader::WireType type) { Varint(uint64_t(field) << 3 | type); }
  void Varint(uint64_t value) {
    size_ = CodedOutputStream::WriteVarint64ToArray(value, data_.data() + size_) - data_.data();
  }

  std::array<uint8_t, 128> data_;  // 8 fields of at most 16 bytes
  size_t size_ = 0;
};

grpc::Slice ValuesSlice(WireValues values) {
  auto* holder = new std::shared_ptr<const void>(std::move(values.owner));
  return grpc::Slice(
      const_cast<std::byte*>(values.bytes.data()), values.bytes.size(),  // gRPC only reads it
      [](void* held) { delete static_cast<std::shared_ptr<const void>*>(held); }, holder);
}

// `fields` followed by the values as bytes field `values_field`; wrapped as field `wrapper` of another message unless
// 0.
grpc::ByteBuffer Encode(int wrapper, FieldWriter fields, int values_field, WireValues values) {
  const size_t size = values.bytes.size();
  if (size > 0) fields.Bytes(values_field, size);
  FieldWriter header;
  if (wrapper != 0) header.Bytes(wrapper, fields.size() + size);
  header.Append(fields);
  const grpc::Slice head(header.data(), header.size());
  if (size == 0) return grpc::ByteBuffer(&head, 1);
  const std::array<grpc::Slice, 2> slices = {head, ValuesSlice(std::move(values))};
  return grpc::ByteBuffer(slices.data(), slices.size());
}

FieldWriter WeightsFields(const WeightsChunkHeader& header) {
  FieldWriter fields;
  fields.Number(v1::WeightsChunk::kVersionFieldNumber, header.version);
  fields.Number(v1::WeightsChunk::kOffsetFieldNumber, header.offset);
  return fields;
}

absl::Status Malformed(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("malformed ", what)); }

// Each reads the fields of one occurrence into `out`, which keeps what an earlier occurrence has set. False if
// malformed.
bool ReadGradient(ProtoReader reader, GradientChunkView* out) {
  using Chunk = v1::GradientChunk;
  while (reader.Next()) {
    if (reader.Is(Chunk::kStepFieldNumber, ProtoReader::kVarint)) {
      out->header.step = reader.number();
    } else if (reader.Is(Chunk::kSlotBeginFieldNumber, ProtoReader::kVarint)) {
      out->header.slot_begin = static_cast<uint32_t>(reader.number());
    } else if (reader.Is(Chunk::kSlotEndFieldNumber, ProtoReader::kVarint)) {
      out->header.slot_end = static_cast<uint32_t>(reader.number());
    } else if (reader.Is(Chunk::kSamplesFieldNumber, ProtoReader::kVarint)) {
      out->header.samples = reader.number();
    } else if (reader.Is(Chunk::kOffsetFieldNumber, ProtoReader::kVarint)) {
      out->header.offset = reader.number();
    } else if (reader.Is(Chunk::kWeightsVersionFieldNumber, ProtoReader::kVarint)) {
      out->header.weights_version = reader.number();
    } else if (reader.Is(Chunk::kValuesFieldNumber, ProtoReader::kBytes)) {
      out->values = reader.bytes();
    }
  }
  return reader.ok();
}

bool ReadWeights(ProtoReader reader, WeightsChunkView* out) {
  using Chunk = v1::WeightsChunk;
  while (reader.Next()) {
    if (reader.Is(Chunk::kVersionFieldNumber, ProtoReader::kVarint)) {
      out->header.version = reader.number();
    } else if (reader.Is(Chunk::kOffsetFieldNumber, ProtoReader::kVarint)) {
      out->header.offset = reader.number();
    } else if (reader.Is(Chunk::kValuesFieldNumber, ProtoReader::kBytes)) {
      out->values = reader.bytes();
    }
  }
  return reader.ok();
}

// The alternative of a oneof that a field selects: the one that is set already, so that occurrences merge, or a new
// one.
template <typename T, typename Variant>
T& Select(Variant& oneof) {
  if (auto* set = std::get_if<T>(&oneof)) return *set;
  return oneof.template emplace<T>();
}

bool MergeMessage(const ByteRope& bytes, google::protobuf::MessageLite* out) {
  std::string flat;
  flat.reserve(bytes.size());
  bytes.ForEachPiece(
      [&](ByteRope::Piece piece) { flat.append(reinterpret_cast<const char*>(piece.data()), piece.size()); });
  return out->MergeFromString(flat);
}

}  // namespace

WireValues ToWire(v1::NumberFormat format, std::span<const float> values, std::shared_ptr<const void> owner) {
  if (!IsNarrow(format)) return {std::as_bytes(values), std::move(owner)};
  const auto encoded = std::make_shared<AlignedBuffer<std::byte>>(EncodedBytes(format, values.size()));
  Encode(format, values, encoded->span());
  return {encoded->span(), encoded};
}

grpc::ByteBuffer EncodeGradient(const GradientChunkHeader& header, WireValues values) {
  using Chunk = v1::GradientChunk;
  FieldWriter fields;
  fields.Number(Chunk::kStepFieldNumber, header.step);
  fields.Number(Chunk::kSlotBeginFieldNumber, header.slot_begin);
  fields.Number(Chunk::kSlotEndFieldNumber, header.slot_end);
  fields.Number(Chunk::kSamplesFieldNumber, header.samples);
  fields.Number(Chunk::kOffsetFieldNumber, header.offset);
  fields.Number(Chunk::kWeightsVersionFieldNumber, header.weights_version);
  return Encode(v1::ExchangeRequest::kGradientFieldNumber, fields, Chunk::kValuesFieldNumber, std::move(values));
}

grpc::ByteBuffer EncodeWeights(const WeightsChunkHeader& header, WireValues values) {
  return Encode(v1::ExchangeResponse::kWeightsFieldNumber, WeightsFields(header), v1::WeightsChunk::kValuesFieldNumber,
                std::move(values));
}

grpc::ByteBuffer EncodeWeightsChunk(const WeightsChunkHeader& header, WireValues values) {
  return Encode(0, WeightsFields(header), v1::WeightsChunk::kValuesFieldNumber, std::move(values));
}

grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status MessageView::Reset(const grpc::ByteBuffer& message) {
  Clear();
  if (!message.Valid()) return Malformed("message: it has no bytes");
  if (!message.Dump(&slices_).ok()) return Malformed("message: it cannot be decompressed");
  for (const grpc::Slice& slice : slices_) {
    pieces_.emplace_back(reinterpret_cast<const std::byte*>(slice.begin()), slice.size());
    size_ += slice.size();
  }
  return absl::OkStatus();
}

void MessageView::Clear() {
  pieces_.clear();
  slices_.clear();
  size_ = 0;
}

absl::StatusOr<ExchangeRequestView> DecodeExchangeRequest(const MessageView& message) {
  ExchangeRequestView request;
  ProtoReader reader(message.bytes());
  while (reader.Next()) {
    if (reader.Is(v1::ExchangeRequest::kGradientFieldNumber, ProtoReader::kBytes)) {
      if (!ReadGradient(ProtoReader(reader.bytes()), &Select<GradientChunkView>(request))) {
        return Malformed("GradientChunk");
      }
    } else if (reader.Is(v1::ExchangeRequest::kOpenFieldNumber, ProtoReader::kBytes)) {
      if (!MergeMessage(reader.bytes(), &Select<v1::OpenExchange>(request))) return Malformed("OpenExchange");
    }
  }
  if (!reader.ok()) return Malformed("ExchangeRequest");
  return request;
}

absl::StatusOr<ExchangeResponseView> DecodeExchangeResponse(const MessageView& message) {
  ExchangeResponseView response;
  ProtoReader reader(message.bytes());
  while (reader.Next()) {
    if (reader.Is(v1::ExchangeResponse::kWeightsFieldNumber, ProtoReader::kBytes)) {
      if (!ReadWeights(ProtoReader(reader.bytes()), &Select<WeightsChunkView>(response))) {
        return Malformed("WeightsChunk");
      }
    } else if (reader.Is(v1::ExchangeResponse::kAckFieldNumber, ProtoReader::kBytes)) {
      if (!MergeMessage(reader.bytes(), &Select<v1::PushAck>(response))) return Malformed("PushAck");
    }
  }
  if (!reader.ok()) return Malformed("ExchangeResponse");
  return response;
}

absl::Status DecodeMessage(const MessageView& message, google::protobuf::MessageLite* out) {
  out->Clear();
  if (!MergeMessage(message.bytes(), out)) return Malformed(out->GetTypeName());
  return absl::OkStatus();
}

}  // namespace millrace
