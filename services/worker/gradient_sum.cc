#include "services/worker/gradient_sum.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "common/mutex.h"

namespace millrace {
namespace {

// Small enough to stay in the second-level cache between the checksum and the copy or addition.
constexpr size_t kBlockElements = 16384;

// The parent of two siblings, in the left one's place.
void AddInto(float* __restrict out, const float* __restrict in, size_t count, v1::NumberFormat wire) {
  for (size_t i = 0; i < count; ++i) out[i] += in[i];
  Round(wire, {out, count});
}

}  // namespace

// Buffers go back here when their last reference is dropped, which gRPC may do late and on its own threads.
class GradientSum::Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(size_t count) : count_(count) {}

  std::shared_ptr<AlignedBuffer<float>> Take() {
    std::unique_ptr<AlignedBuffer<float>> buffer;
    {
      MutexLock lock(&mutex_);
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (buffer == nullptr) buffer = std::make_unique<AlignedBuffer<float>>(count_);
    return {buffer.release(), [pool = shared_from_this()](AlignedBuffer<float>* done) {
              MutexLock lock(&pool->mutex_);
              pool->free_.emplace_back(done);
            }};
  }

 private:
  const size_t count_;
  Mutex mutex_;
  std::vector<std::unique_ptr<AlignedBuffer<float>>> free_ ABSL_GUARDED_BY(mutex_);
};

GradientSum::GradientSum(size_t parameter_count, v1::NumberFormat wire)
    : wire_(wire),
      pool_(std::make_shared<Pool>(parameter_count)),
      rounded_(IsNarrow(wire) ? std::min(kBlockElements, parameter_count) : 0) {}
GradientSum::~GradientSum() = default;

void GradientSum::Begin(uint32_t slots) {
  slots_ = slots;
  partials_.clear();
}

uint64_t GradientSum::Add(uint32_t slot, std::span<const std::span<const float>> pieces) {
  const SlotNode leaf{slot, slot + 1};
  assert(IsSlotNode(leaf, slots_));
  const bool right_child =
      !partials_.empty() && leaf != SlotNode{0, slots_} && partials_.back().node == SlotSibling(leaf, slots_);
  if (!right_child) partials_.push_back({leaf, pool_->Take()});

  float* out = partials_.back().sum->data();
  checksum_.Reset();
  for (std::span<const float> piece : pieces) {
    for (size_t begin = 0; begin < piece.size(); begin += kBlockElements) {
      const std::span<const float> block = piece.subspan(begin, std::min(kBlockElements, piece.size() - begin));
      checksum_.Update(std::as_bytes(block));
      if (!right_child) {
        std::memcpy(out, block.data(), block.size_bytes());
        Round(wire_, {out, block.size()});
      } else if (rounded_.empty()) {
        AddInto(out, block.data(), block.size(), wire_);
      } else {
        std::memcpy(rounded_.data(), block.data(), block.size_bytes());
        Round(wire_, std::span(rounded_).first(block.size()));
        AddInto(out, rounded_.data(), block.size(), wire_);
      }
      out += block.size();
    }
  }
  assert(out == partials_.back().sum->data() + partials_.back().sum->size());
  if (right_child) {
    partials_.back().node = SlotParent(leaf, slots_);
    MergeSiblings();
  }
  return checksum_.Value();
}

void GradientSum::MergeSiblings() {
  while (partials_.size() >= 2) {
    Partial& right = partials_[partials_.size() - 1];
    Partial& left = partials_[partials_.size() - 2];
    if (SlotSibling(right.node, slots_) != left.node) return;
    AddInto(left.sum->data(), right.sum->data(), left.sum->size(), wire_);
    left.node = SlotParent(right.node, slots_);
    partials_.pop_back();
  }
}

std::shared_ptr<const AlignedBuffer<float>> GradientSum::Finish() {
  assert(partials_.size() == 1);
  std::shared_ptr<const AlignedBuffer<float>> sum = std::move(partials_.back().sum);
  partials_.clear();
  return sum;
}

}  // namespace millrace
