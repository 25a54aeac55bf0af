#include "services/data/request_queue.h"

#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace millrace {

absl::Status RequestQueue::Add(const v1::BatchRange& range) {
  const uint64_t free = kOutstandingBatchesMax - outstanding_;
  const uint64_t slots = range.slot_end() - range.slot_begin();
  if (range.steps() > free / slots) {
    return absl::ResourceExhaustedError(
        absl::StrCat(range.steps(), " steps of ", slots, " batches are asked for while ", outstanding_,
                     " batches are outstanding: over the limit of ", kOutstandingBatchesMax));
  }
  if (ranges_.empty()) next_slot_ = range.slot_begin();
  ranges_.push_back(range);
  outstanding_ += range.steps() * slots;
  return absl::OkStatus();
}

BatchKey RequestQueue::Pop() {
  --outstanding_;
  v1::BatchRange& range = ranges_.front();
  const BatchKey key = {range.split(), range.epoch(), range.step(), next_slot_};
  if (++next_slot_ == range.slot_end()) {
    range.set_step(range.step() + 1);
    range.set_steps(range.steps() - 1);
    if (range.steps() == 0) ranges_.pop_front();
    if (!ranges_.empty()) next_slot_ = ranges_.front().slot_begin();
  }
  return key;
}

}  // namespace millrace
