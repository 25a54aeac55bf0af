// The bulk messages of parameter.proto, encoded and decoded by hand so that no value is copied on the way (DESIGN D8).
// What goes over the wire is plain protobuf: any client of the .proto can take either side.
//
// Sending: a message is one small slice with the encoded fields and one that points at the caller's numbers, which are
// in the job's number format (number_format.h).
//   grpc::ByteBuffer message = EncodeGradient(header, {values, owner});  // an ExchangeRequest
// gRPC may read `values` until the last reference to the slice is gone, also after the write is reported done. `owner`
// is kept until then: its deleter (on any thread) tells when the memory may be written again.
//
// Receiving: a MessageView holds the message's slices and is decoded in place; the values are summed or copied out of
// it (number_format.h). Let go of it soon: slices pin whole receive buffers.
//   MessageView view;                                                  // reused from message to message
//   if (auto status = view.Reset(message); !status.ok()) ...
//   auto request = DecodeExchangeRequest(view);                        // StatusOr
//   if (auto* gradient = std::get_if<GradientChunkView>(&*request)) AddFloats(gradient->values, accumulator);
//
// Errors: INVALID_ARGUMENT for bytes that are not a well-formed message; no input crashes. Unknown fields are skipped
// and repeated ones resolved as protobuf prescribes (the last one wins). Ranges, grids and sizes are the receiver's to
// check. Threads: a view belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor/byte_rope.h"
#include "common/tensor/number_format.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "millrace/v1/parameter.pb.h"

namespace millrace {

// Pushes and pulls move pieces of this many elements (1 MiB of float32; with a quarter of that, messages cost more than
// the finer overlap gains); a shard's last piece may be shorter.
inline constexpr uint64_t kChunkElements = 262144;
static_assert(kChunkElements % kNumbersTogether == 0);

constexpr uint64_t ChunkCount(uint64_t elements, uint64_t chunk_elements = kChunkElements) {
  return (elements + chunk_elements - 1) / chunk_elements;
}
// Elements of the chunk that begins at `offset` of a range of `elements`.
constexpr uint64_t ChunkSize(uint64_t elements, uint64_t offset, uint64_t chunk_elements = kChunkElements) {
  return elements - offset < chunk_elements ? elements - offset : chunk_elements;
}

// --- Sending ---

// Numbers as they travel, and what keeps them alive and unchanged.
struct WireValues {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// `values` themselves if they travel as they are, else a copy in the format.
WireValues ToWire(v1::NumberFormat format, std::span<const float> values, std::shared_ptr<const void> owner);

// The fields of v1.GradientChunk but its values.
struct GradientChunkHeader {
  uint64_t step = 0;
  uint32_t slot_begin = 0;
  uint32_t slot_end = 0;
  uint64_t samples = 0;  // of the whole step
  uint64_t offset = 0;   // elements from the shard's begin
  uint64_t weights_version = 0;
};

// The fields of v1.WeightsChunk but its values.
struct WeightsChunkHeader {
  uint64_t version = 0;
  uint64_t offset = 0;  // elements from the shard's begin
};

// An ExchangeRequest, an ExchangeResponse, and a bare WeightsChunk (the FetchWeights stream).
grpc::ByteBuffer EncodeGradient(const GradientChunkHeader& header, WireValues values);
grpc::ByteBuffer EncodeWeights(const WeightsChunkHeader& header, WireValues values);
grpc::ByteBuffer EncodeWeightsChunk(const WeightsChunkHeader& header, WireValues values);

// A small message (open, ack, a request) by the stock encoder.
grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message);

// --- Receiving ---

// The bytes of one received message.
class MessageView {
 public:
  MessageView() = default;
  MessageView(const MessageView&) = delete;
  MessageView& operator=(const MessageView&) = delete;

  // Takes references to the slices of `message`; what was decoded from an earlier message dies.
  absl::Status Reset(const grpc::ByteBuffer& message);
  // Lets go of the slices.
  void Clear();

  size_t size() const { return size_; }
  ByteRope bytes() const { return ByteRope(pieces_, 0, size_); }
  std::span<const ByteRope::Piece> pieces() const { return pieces_; }

 private:
  std::vector<grpc::Slice> slices_;
  std::vector<ByteRope::Piece> pieces_;  // the same bytes
  size_t size_ = 0;
};

struct GradientChunkView {
  GradientChunkHeader header;
  ByteRope values;  // in the job's number format
};

struct WeightsChunkView {
  WeightsChunkHeader header;
  ByteRope values;  // in the job's number format
};

// monostate: a valid message of a kind this build does not know.
using ExchangeRequestView = std::variant<std::monostate, v1::OpenExchange, GradientChunkView>;
using ExchangeResponseView = std::variant<std::monostate, v1::PushAck, WeightsChunkView>;

// The results refer to `message` and die with it.
absl::StatusOr<ExchangeRequestView> DecodeExchangeRequest(const MessageView& message);
absl::StatusOr<ExchangeResponseView> DecodeExchangeResponse(const MessageView& message);

// A small message by the stock decoder.
absl::Status DecodeMessage(const MessageView& message, google::protobuf::MessageLite* out);

}  // namespace millrace
