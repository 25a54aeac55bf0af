// The batches that a client of the data service has asked for and not used yet: what is to be asked, what is on its way
// and what is there. Pure: no clock, no stream. Threads: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/batch_key.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

class BatchRequests {
 public:
  // Asked for and not yet taken or forgotten; bounds the memory that batches take.
  static constexpr size_t kKeysMax = 1024;

  // Those that are there already are skipped. RESOURCE_EXHAUSTED if there would be more than kKeysMax; nothing is added
  // then.
  absl::Status Add(std::span<const BatchKey> keys, absl::Time now);
  // These will not be taken.
  void Forget(std::span<const BatchKey> keys);

  // A new stream: puts what has not arrived in line to be asked for, in its old order.
  void AskAgain();
  // Takes what the next message of the stream should ask for, as far as the service's limit on credits allows.
  std::optional<v1::BatchRange> NextRange();
  // The stream has brought it. Whether somebody wants it.
  bool Deliver(v1::Batch batch);

  bool contains(const BatchKey& key) const { return entries_.contains(key); }
  // The batch, if it is there; it is no longer contained then.
  std::optional<v1::Batch> Take(const BatchKey& key);
  // When a key that is contained was added.
  absl::Time requested(const BatchKey& key) const { return entries_.at(key).requested; }

  // What the stream owes: asked for on it and not received, forgotten ones included.
  uint64_t in_flight() const { return in_flight_; }
  // What has not arrived.
  size_t missing() const;

 private:
  enum class State { kToAsk, kAsked, kArrived };
  struct Entry {
    uint64_t sequence = 0;  // of asking
    State state = State::kToAsk;
    absl::Time requested;
    v1::Batch batch;  // once kArrived
  };

  std::map<BatchKey, Entry> entries_;
  std::deque<BatchKey> to_ask_;  // those in kToAsk, in the order of asking
  uint64_t next_sequence_ = 0;
  uint64_t in_flight_ = 0;
};

BatchKey KeyOf(const v1::Batch& batch);

// DATA_LOSS, naming the batch, if its parts do not fit each other, or an image has not `image_bytes` (0: any).
absl::Status CheckBatch(const v1::Batch& batch, uint64_t image_bytes);

// Takes from the front of `keys` a range that one request can name: runs of slots of one step, repeated over
// consecutive steps. At most `batches_max` (>= 1) batches; `keys` is not empty.
v1::BatchRange TakeRange(std::deque<BatchKey>& keys, uint64_t batches_max);

}  // namespace millrace
