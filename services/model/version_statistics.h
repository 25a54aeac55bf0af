// What a version has answered, as the Open Inference Protocol's ModelStatistics counts it. Numbers only grow.
#pragma once

#include <cstdint>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "services/model/inference.h"

namespace millrace {

// Any thread. One short lock per request and per batch.
class VersionStatistics {
 public:
  struct Total {
    uint64_t count = 0;
    absl::Duration time;

    void Add(absl::Duration more) {
      ++count;
      time += more;
    }
  };
  struct Numbers {
    absl::Time last = absl::InfinitePast();  // when a request was last answered
    uint64_t rows = 0;                       // answered
    uint64_t batches = 0;                    // computed
    Total success;                           // requests, from arrival to answer; of which ...
    Total queue, batch_wait, compute, rest;  // ... as in InferenceAnswer, and what is left over
    Total fail;                              // requests without an answer
    std::map<uint32_t, Total> batch_sizes;   // batches computed, by rows: as many entries as a batch may have rows
  };

  void CountAnswer(const InferenceAnswer& answer, absl::Duration total, absl::Time now);
  void CountFailure(absl::Duration total);
  void CountBatch(uint32_t rows, absl::Duration compute);

  Numbers numbers() const;

 private:
  mutable Mutex mutex_;
  Numbers numbers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
