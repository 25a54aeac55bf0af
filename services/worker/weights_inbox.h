// What a worker holds of one shard's weights, as an exchange brings them in: pieces in order of offset, straight into
// the flat parameter vector; versions that are overtaken by newer ones, and versions that only a fetch can bring.
// Knows no gRPC.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor/number_format.h"
#include "common/tensor/wire.h"

namespace millrace {

class WeightsInbox {
 public:
  // `range` is the shard's part of the flat vector; weights come in `format`.
  explicit WeightsInbox(std::span<float> range, v1::NumberFormat format = v1::NUMBER_FORMAT_UNSPECIFIED)
      : range_(range), format_(format) {}

  // The version that the range holds, whole; nullopt before the first and while a newer one is arriving.
  std::optional<uint64_t> version() const { return version_; }
  // Some of a version is in, and the rest is to come.
  bool arriving() const { return incoming_offset_ > 0; }
  // True if only a fetch can bring `version`: the shard sends or has sent a newer one, or this one came and was
  // overwritten by a fetch.
  bool must_fetch(uint64_t version) const {
    const bool this_one_arrives = newest_version_ == version && arriving();
    return version_ != version && received_ && newest_version_ >= version && !this_one_arrives;
  }

  // A new stream: it begins with a whole version.
  void StreamOpened();
  // The next piece of the stream. INVALID_ARGUMENT for one that is out of order or does not fit.
  absl::Status Receive(const WeightsChunkView& chunk);

  // A fetched version comes in pieces too. The range holds a mixture until Fetched.
  void BeginFetch();
  // The next piece. INVALID_ARGUMENT for one that does not follow the one before it or does not fit.
  absl::Status ReceiveFetched(uint64_t offset, const ByteRope& values);
  // All of `version` was received. INVALID_ARGUMENT if it was not.
  absl::Status Fetched(uint64_t version);

 private:
  // Writes a piece at `offset`; its number of elements. INVALID_ARGUMENT if it does not fit there.
  absl::StatusOr<uint64_t> Write(uint64_t offset, const ByteRope& values);

  const std::span<float> range_;
  const v1::NumberFormat format_;
  std::optional<uint64_t> version_;
  bool received_ = false;  // newest_version_ means something
  uint64_t newest_version_ = 0;
  uint64_t incoming_offset_ = 0;   // elements of newest_version_ received; 0 if none is under way
  bool incoming_spoiled_ = false;  // a fetch has overwritten some of them
  uint64_t fetched_ = 0;           // elements, since BeginFetch
};

}  // namespace millrace
