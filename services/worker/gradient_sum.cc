#include "services/worker/gradient_sum.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "common/mutex.h"

namespace millrace {
namespace {

// Small enough to stay in the second-level cache between the checksum and the copy or addition, and between addition
// and rounding.
constexpr size_t kBlockElements = 16384;
static_assert(kBlockElements % kNumbersTogether == 0);

void AddInto(float* __restrict out, const float* __restrict in, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] += in[i];
}

// Calls fn(begin, count) for the blocks of a vector of `size`.
template <typename Fn>
void ForEachBlock(size_t size, Fn fn) {
  for (size_t begin = 0; begin < size; begin += kBlockElements) fn(begin, std::min(kBlockElements, size - begin));
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
    : wire_(wire), pool_(std::make_shared<Pool>(parameter_count)) {}
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
  const bool straight_in = right_child && !IsNarrow(wire_);  // what is rounded first needs a place of its own
  if (!straight_in) partials_.push_back({leaf, pool_->Take()});

  float* out = partials_.back().sum->data();
  checksum_.Reset();
  for (const std::span<const float> piece : pieces) {
    ForEachBlock(piece.size(), [&](size_t begin, size_t count) {
      const std::span<const float> block = piece.subspan(begin, count);
      checksum_.Update(std::as_bytes(block));
      if (straight_in) {
        AddInto(out, block.data(), count);
      } else {
        std::memcpy(out, block.data(), block.size_bytes());
      }
      out += count;
    });
  }
  assert(out == partials_.back().sum->data() + partials_.back().sum->size());
  if (straight_in) {
    partials_.back().node = SlotParent(leaf, slots_);
  } else {
    Round(wire_, partials_.back().sum->span());
  }
  MergeSiblings();
  return checksum_.Value();
}

void GradientSum::MergeSiblings() {
  while (partials_.size() >= 2) {
    const Partial& right = partials_[partials_.size() - 1];
    Partial& left = partials_[partials_.size() - 2];
    if (SlotSibling(right.node, slots_) != left.node) return;
    const std::span<float> sum = left.sum->span();
    ForEachBlock(sum.size(), [&](size_t begin, size_t count) {
      AddInto(sum.data() + begin, right.sum->data() + begin, count);
      Round(wire_, sum.subspan(begin, count));
    });
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
