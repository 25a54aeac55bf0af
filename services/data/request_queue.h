#pragma once

#include <cstdint>
#include <deque>

#include "absl/status/status.h"
#include "common/batch_key.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

// Batches that one stream has been asked for and has not sent yet, in order. Every batch is a credit: the bound on them
// bounds what a stream can make the service remember, and ranges are kept as ranges. Not thread-safe.
class RequestQueue {
 public:
  // `range` exists under the stream's plan. RESOURCE_EXHAUSTED if it takes the stream over kOutstandingBatchesMax;
  // nothing is added then.
  absl::Status Add(const v1::BatchRange& range);

  bool empty() const { return ranges_.empty(); }
  // The next batch to send; not empty. Its credit is free from now on, not only once it has been written: the client
  // may have it, and ask for another, before the writer learns that it has left.
  BatchKey Pop();

  // Batches asked for and not popped.
  uint64_t outstanding() const { return outstanding_; }

 private:
  std::deque<v1::BatchRange> ranges_;  // what is left of each; none is empty
  uint32_t next_slot_ = 0;             // within the first range's step
  uint64_t outstanding_ = 0;
};

}  // namespace millrace
