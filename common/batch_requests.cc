#include "common/batch_requests.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"
#include "common/limits.h"

namespace millrace {

absl::Status BatchRequests::Add(std::span<const BatchKey> keys, absl::Time now) {
  size_t added = 0;
  for (const BatchKey& key : keys) added += entries_.contains(key) ? 0 : 1;
  if (entries_.size() + added > kKeysMax) {
    return absl::ResourceExhaustedError(absl::StrCat(entries_.size(), " batches are asked for already; ", added,
                                                     " more are over the limit of ", kKeysMax));
  }
  for (const BatchKey& key : keys) {
    const auto [entry, inserted] = entries_.try_emplace(key);
    if (!inserted) continue;
    entry->second.sequence = next_sequence_++;
    entry->second.requested = now;
    to_ask_.push_back(key);
  }
  return absl::OkStatus();
}

void BatchRequests::Forget(std::span<const BatchKey> keys) {
  for (const BatchKey& key : keys) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) continue;
    if (found->second.state == State::kToAsk) std::erase(to_ask_, key);
    entries_.erase(found);
  }
}

void BatchRequests::AskAgain() {
  std::vector<std::pair<uint64_t, BatchKey>> missing;
  for (auto& [key, entry] : entries_) {
    if (entry.state == State::kArrived) continue;
    entry.state = State::kToAsk;
    missing.emplace_back(entry.sequence, key);
  }
  std::ranges::sort(missing);
  to_ask_.clear();
  for (const auto& [_, key] : missing) to_ask_.push_back(key);
  in_flight_ = 0;
}

std::optional<v1::BatchRange> BatchRequests::NextRange() {
  if (to_ask_.empty() || in_flight_ >= kOutstandingBatchesMax) return std::nullopt;
  const v1::BatchRange range = TakeRange(to_ask_, kOutstandingBatchesMax - in_flight_);
  for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
    for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
      entries_.at({range.split(), range.epoch(), step, slot}).state = State::kAsked;
      ++in_flight_;
    }
  }
  return range;
}

bool BatchRequests::Deliver(v1::Batch batch) {
  if (in_flight_ > 0) --in_flight_;
  const auto found = entries_.find(KeyOf(batch));
  if (found == entries_.end() || found->second.state == State::kArrived) return false;  // forgotten meanwhile
  if (found->second.state == State::kToAsk) {
    // Forgotten and requested again while its first answer was on the way.
    std::erase(to_ask_, found->first);
  }
  found->second.state = State::kArrived;
  found->second.batch = std::move(batch);
  return true;
}

std::optional<v1::Batch> BatchRequests::Take(const BatchKey& key) {
  const auto found = entries_.find(key);
  if (found == entries_.end() || found->second.state != State::kArrived) return std::nullopt;
  v1::Batch batch = std::move(found->second.batch);
  entries_.erase(found);
  return batch;
}

size_t BatchRequests::missing() const {
  return static_cast<size_t>(
      std::ranges::count_if(entries_, [](const auto& entry) { return entry.second.state != State::kArrived; }));
}

BatchKey KeyOf(const v1::Batch& batch) { return {batch.split(), batch.epoch(), batch.step(), batch.slot()}; }

absl::Status CheckBatch(const v1::Batch& batch, uint64_t image_bytes) {
  const auto fault = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(KeyOf(batch).ToString(), ": ", what));
  };
  if (batch.labels().size() != batch.samples()) {
    return fault(absl::StrCat(batch.samples(), " samples with ", batch.labels().size(), " labels"));
  }
  if (image_bytes != 0 && batch.images().size() != batch.samples() * image_bytes) {
    return fault(
        absl::StrCat(batch.samples(), " images of ", image_bytes, " bytes in ", batch.images().size(), " bytes"));
  }
  if (batch.samples() > batch.step_samples()) {
    return fault(absl::StrCat(batch.samples(), " samples in a step of ", batch.step_samples()));
  }
  Checksum checksum;
  checksum.Update(batch.images());
  checksum.Update(batch.labels());
  if (checksum.Value() != batch.checksum()) return fault("its checksum is wrong");
  return absl::OkStatus();
}

v1::BatchRange TakeRange(std::deque<BatchKey>& keys, uint64_t batches_max) {
  const BatchKey first = keys.front();
  uint64_t slots = 0;
  while (slots < keys.size() && slots < batches_max &&
         keys[slots] == BatchKey{first.split, first.epoch, first.step, first.slot + static_cast<uint32_t>(slots)}) {
    ++slots;
  }
  uint64_t count = slots;
  while (count < keys.size() && count < batches_max / slots * slots &&
         keys[count] == BatchKey{first.split, first.epoch, first.step + count / slots,
                                 first.slot + static_cast<uint32_t>(count % slots)}) {
    ++count;
  }
  const uint64_t steps = count / slots;
  keys.erase(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(steps * slots));

  v1::BatchRange range;
  range.set_split(first.split);
  range.set_epoch(first.epoch);
  range.set_step(first.step);
  range.set_steps(steps);
  range.set_slot_begin(first.slot);
  range.set_slot_end(first.slot + static_cast<uint32_t>(slots));
  return range;
}

}  // namespace millrace
