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
#include "common/tensor/wire.h"

namespace millrace {

class WeightsInbox {
 public:
  // `range` is the shard's part of the flat vector.
  explicit WeightsInbox(std::span<float> range) : range_(range) {}

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

  // Where to write a fetched version: the whole range. It holds a mixture until Fetched.
  std::span<float> BeginFetch();
  // All of `version` is written.
  void Fetched(uint64_t version) { version_ = version; }

 private:
  const std::span<float> range_;
  std::optional<uint64_t> version_;
  bool received_ = false;  // newest_version_ means something
  uint64_t newest_version_ = 0;
  uint64_t incoming_offset_ = 0;   // elements of newest_version_ received; 0 if none is under way
  bool incoming_spoiled_ = false;  // a fetch has overwritten some of them
};

}  // namespace millrace
