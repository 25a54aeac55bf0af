// Which piece of which version to send next to one peer, as versions are being made and the peer reads slowly. Part of
// an exchange; knows no gRPC.
//
//   outbox.Offer(progress);                         // whenever there is more of a version
//   while (auto piece = outbox.Next()) Send(*piece);  // whenever the peer can take one
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "common/tensor/wire.h"
#include "services/parameter_server/shard.h"

namespace millrace {

class WeightsOutbox {
 public:
  explicit WeightsOutbox(uint64_t chunk_elements = kChunkElements) : chunk_elements_(chunk_elements) {}

  struct Piece {
    WeightsChunkHeader header;
    WireValues values;
  };

  // False, and nothing changed, unless it is newer than what was offered before.
  bool Offer(const WeightsProgress& progress);
  // Takes up what was offered. Next does so too.
  void Advance();
  // What to send now, in order of offset within a version; nullopt until more is offered.
  std::optional<Piece> Next();
  // Lets go of all versions.
  void Clear() { newest_ = sending_ = {}; }

 private:
  const uint64_t chunk_elements_;
  WeightsProgress newest_;   // that was offered
  WeightsProgress sending_;  // owner is null when all of it has been sent
  uint64_t next_offset_ = 0;
};

}  // namespace millrace
