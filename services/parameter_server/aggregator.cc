#include "services/parameter_server/aggregator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/planted_bug.h"

namespace millrace {
namespace {

// Whether the sum over `held` is what the sum over `node` is added to next.
bool Joins(SlotNode held, SlotNode node, uint32_t slots) {
  if (kPlantedBug == PlantedBug::kArrivalOrderSum) return held.end == node.begin || node.end == held.begin;
  return held == SlotSibling(node, slots);
}

}  // namespace

Aggregator::Aggregator(uint64_t elements, uint64_t chunk_elements, uint32_t slots, v1::NumberFormat wire)
    : elements_(elements),
      chunk_elements_(chunk_elements),
      slots_(slots),
      wire_(wire),
      total_(elements),
      decoded_(IsNarrow(wire) ? std::min(chunk_elements, elements) : 0),
      chunks_((elements + chunk_elements - 1) / chunk_elements) {}

void Aggregator::Reset() {
  for (Chunk& chunk : chunks_) {
    while (!chunk.held.empty()) free_.push_back(Detach(chunk, chunk.held.size() - 1));
    chunk.complete = false;
  }
}

AlignedBuffer<float> Aggregator::TakeBuffer() {
  if (free_.empty()) return AlignedBuffer<float>(chunk_elements_);
  AlignedBuffer<float> buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

AlignedBuffer<float> Aggregator::Detach(Chunk& chunk, size_t index) {
  AlignedBuffer<float> sum = std::move(chunk.held[index].sum);
  if (index + 1 < chunk.held.size()) chunk.held[index] = std::move(chunk.held.back());
  chunk.held.pop_back();
  return sum;
}

bool Aggregator::ChunkHolds(const Chunk& chunk, SlotNode node) {
  return chunk.complete ||
         std::any_of(chunk.held.begin(), chunk.held.end(), [&](const Held& held) { return held.node.Covers(node); });
}

absl::StatusOr<bool> Aggregator::Add(SlotNode node, uint64_t offset, const ByteRope& wire_values) {
  if (!IsSlotNode(node, slots_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("slots [", node.begin, ", ", node.end, ") are no node of the tree over ", slots_, " slots"));
  }
  if (offset >= elements_ || offset % chunk_elements_ != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("offset ", offset, " is off the grid of ", chunk_elements_, " over ", elements_, " elements"));
  }
  const uint64_t size = std::min(chunk_elements_, elements_ - offset);
  if (wire_values.size() != EncodedBytes(wire_, size)) {
    return absl::InvalidArgumentError(absl::StrCat("the chunk at ", offset, " has ", wire_values.size(),
                                                   " bytes instead of ", EncodedBytes(wire_, size)));
  }
  Chunk& chunk = chunks_[offset / chunk_elements_];
  if (ChunkHolds(chunk, node)) return false;
  for (size_t i = chunk.held.size(); i-- > 0;) {
    if (node.Covers(chunk.held[i].node)) free_.push_back(Detach(chunk, i));
  }

  const std::span<float> decoded = decoded_.span().first(IsNarrow(wire_) ? size : 0);
  const ByteRope::Piece decoded_bytes = std::as_bytes(decoded);
  if (IsNarrow(wire_)) Decode(wire_, wire_values, decoded);
  const ByteRope values = IsNarrow(wire_) ? ByteRope({&decoded_bytes, 1}, 0, decoded_bytes.size()) : wire_values;

  // Up the tree, as far as siblings are held. The arriving values are read once, into the first sum they take part in;
  // a sum that is the root's is made in its place in total_.
  const std::span<float> root = total_.span().subspan(offset, size);
  AlignedBuffer<float> sum;  // of `node`, once the values have been read
  bool read = false;
  while (node != SlotNode{0, slots_}) {
    const auto held = std::find_if(chunk.held.begin(), chunk.held.end(),
                                   [&](const Held& other) { return Joins(other.node, node, slots_); });
    if (held == chunk.held.end()) break;
    node = {std::min(node.begin, held->node.begin), std::max(node.end, held->node.end)};
    AlignedBuffer<float> other = Detach(chunk, static_cast<size_t>(held - chunk.held.begin()));
    const bool is_root = node == SlotNode{0, slots_};
    const std::span<float> out = is_root ? root : other.span().first(size);
    if (!read && is_root) {
      SumFloats(values, other.span().first(size), out);
    } else if (!read) {
      AddFloats(values, out);
    } else {
      for (size_t i = 0; i < size; ++i) out[i] = other[i] + sum[i];
      free_.push_back(std::move(sum));
    }
    Round(wire_, out);
    read = true;
    sum = std::move(other);
  }
  if (node == SlotNode{0, slots_}) {
    if (!read) CopyFloats(values, root);
    if (!sum.empty()) free_.push_back(std::move(sum));
    chunk.complete = true;
    return true;
  }
  if (!read) {
    sum = TakeBuffer();
    CopyFloats(values, sum.span().first(size));
  }
  chunk.held.push_back({node, std::move(sum)});
  return true;
}

bool Aggregator::Holds(SlotNode node) const {
  return std::all_of(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return ChunkHolds(chunk, node); });
}

std::vector<uint32_t> Aggregator::MissingSlots() const {
  std::vector<uint32_t> missing;
  for (uint32_t slot = 0; slot < slots_; ++slot) {
    if (!Holds({slot, slot + 1})) missing.push_back(slot);
  }
  return missing;
}

}  // namespace millrace
