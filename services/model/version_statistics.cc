#include "services/model/version_statistics.h"

#include <algorithm>

namespace millrace {

void VersionStatistics::CountAnswer(const InferenceAnswer& answer, absl::Duration total, absl::Time now) {
  MutexLock lock(&mutex_);
  numbers_.last = std::max(numbers_.last, now);
  numbers_.rows += answer.rows;
  numbers_.success.Add(total);
  numbers_.queue.Add(answer.queue);
  numbers_.batch_wait.Add(answer.batch_wait);
  numbers_.compute.Add(answer.compute);
  // Batches of one request may be computed side by side, and then their times add up to more than the whole.
  numbers_.rest.Add(std::max(absl::ZeroDuration(), total - answer.queue - answer.batch_wait - answer.compute));
}

void VersionStatistics::CountFailure(absl::Duration total) {
  MutexLock lock(&mutex_);
  numbers_.fail.Add(total);
}

void VersionStatistics::CountBatch(uint32_t rows, absl::Duration compute) {
  MutexLock lock(&mutex_);
  ++numbers_.batches;
  numbers_.batch_sizes[rows].Add(compute);
}

VersionStatistics::Numbers VersionStatistics::numbers() const {
  MutexLock lock(&mutex_);
  return numbers_;
}

}  // namespace millrace
