// Sums the gradients of one step's slots, in the fixed tree of common/tensor/slot_tree.h, as they arrive.
//
// Pure: no gRPC, no threads, no clock. What arrives is the sum over one node of the tree, in chunks of a fixed grid.
// Each chunk is its own little tree: a node that is covered by what is held is a duplicate and changes nothing; one
// that covers held nodes replaces them; siblings are added at once. Gradients are deterministic to the bit, so it makes
// no difference which copy of a slot is kept, nor in which order siblings meet (a + b is commutative). Sums are
// float32; of a job whose gradients travel in a narrow number format, every node is rounded to it, as on the workers.
//
// Memory: what is held of a chunk are disjoint nodes, so at most one accumulator per slot, and with pushes that arrive
// in slot order about log2(slots). Accumulators are reused from chunk to chunk and step to step.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/aligned_buffer.h"
#include "common/tensor/byte_rope.h"
#include "common/tensor/number_format.h"
#include "common/tensor/slot_tree.h"

namespace millrace {

class Aggregator {
 public:
  // For a range of `elements` in chunks of `chunk_elements`, of steps with `slots` slots. All at least 1; chunks that
  // are rounded are of a multiple of kNumbersTogether.
  Aggregator(uint64_t elements, uint64_t chunk_elements, uint32_t slots,
             v1::NumberFormat wire = v1::NUMBER_FORMAT_UNSPECIFIED);

  // Forgets what is held: the next Add belongs to another step.
  void Reset();

  // Adds the chunk at `offset` of the sum over `node`, as it came over the wire. False for a duplicate.
  // INVALID_ARGUMENT (nothing changed) for a range that is no node, an offset off the grid or values of another size
  // than the chunk's.
  absl::StatusOr<bool> Add(SlotNode node, uint64_t offset, const ByteRope& values);

  // Every chunk of `node` is held.
  bool Holds(SlotNode node) const;

  uint64_t chunks() const { return chunks_.size(); }

  // All slots of the chunk are held: nothing changes it before Reset.
  bool complete(uint64_t chunk) const { return chunks_[chunk].complete; }

  // The sum over all slots; only chunks that are complete are meaningful. Writable for in-place scaling.
  std::span<float> total() { return total_.span(); }

  // Slots of which some chunk is missing, in order.
  std::vector<uint32_t> MissingSlots() const;

 private:
  // A held node other than the root, which is held in total_.
  struct Held {
    SlotNode node;
    AlignedBuffer<float> sum;  // chunk_elements_ long
  };
  struct Chunk {
    std::vector<Held> held;  // disjoint
    bool complete = false;   // the root is held
  };

  static bool ChunkHolds(const Chunk& chunk, SlotNode node);
  AlignedBuffer<float> Detach(Chunk& chunk, size_t index);  // removes a held node and returns its sum
  AlignedBuffer<float> TakeBuffer();

  const uint64_t elements_;
  const uint64_t chunk_elements_;
  const uint32_t slots_;
  const v1::NumberFormat wire_;
  AlignedBuffer<float> total_;
  AlignedBuffer<float> decoded_;  // a chunk that came in a narrow format
  std::vector<Chunk> chunks_;
  std::vector<AlignedBuffer<float>> free_;
};

}  // namespace millrace
