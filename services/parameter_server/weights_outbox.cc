#include "services/parameter_server/weights_outbox.h"

#include <utility>

namespace millrace {

bool WeightsOutbox::Offer(const WeightsProgress& progress) {
  const auto rank = [](const WeightsProgress& p) { return std::pair(p.weights.version, p.ready); };
  if (rank(progress) <= rank(newest_)) return false;
  newest_ = progress;
  return true;
}

void WeightsOutbox::Advance() {
  const bool begun = !sending_.weights.values.empty() && sending_.weights.version == newest_.weights.version;
  const bool idle = sending_.weights.owner == nullptr;
  if (begun) {
    sending_.ready = newest_.ready;
  } else if (idle || newest_.whole()) {
    // Only a whole version supersedes one that is being sent: the peer could be left without any otherwise.
    sending_ = newest_;
    next_offset_ = 0;
  } else {
    sending_.ready = sending_.weights.values.size();  // a newer one has begun, so this one is whole
  }
}

std::optional<WeightsOutbox::Piece> WeightsOutbox::Next() {
  Advance();
  if (sending_.weights.owner == nullptr || next_offset_ >= sending_.ready) return std::nullopt;
  const uint64_t all = sending_.weights.values.size(), count = ChunkSize(all, next_offset_, chunk_elements_);
  Piece piece{{sending_.weights.version, next_offset_},
              sending_.weights.Travelling(next_offset_, next_offset_ + count)};
  next_offset_ += count;
  if (next_offset_ == all) {  // let go of the buffer
    sending_.weights.owner.reset();
    if (newest_.weights.version == sending_.weights.version) newest_.weights.owner.reset();
  }
  return piece;
}

}  // namespace millrace
