#include "services/worker/batch_feed.h"

#include <algorithm>

#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

// How often a wait looks around.
constexpr absl::Duration kPoll = absl::Milliseconds(200);

}  // namespace

void BatchFeed::Prefetch(const std::vector<BatchKey>& keys) {
  wanted_.insert(wanted_.end(), keys.begin(), keys.end());
  Fill();
}

void BatchFeed::Fill() {
  std::vector<BatchKey> keys;
  while (!wanted_.empty() && asked_.size() < kWindow) {
    if (asked_.insert(wanted_.front()).second) keys.push_back(wanted_.front());
    wanted_.pop_front();
  }
  if (keys.empty()) return;
  // Cannot fail: the window is far below the client's limit. A failure would show in Get.
  client_.Request(keys).IgnoreError();
}

absl::StatusOr<v1::Batch> BatchFeed::Get(const BatchKey& key, WaitCallback wait) {
  if (asked_.insert(key).second) {
    // Its turn came before that of what was wanted earlier.
    std::erase(wanted_, key);
    MILLRACE_RETURN_IF_ERROR(client_.Request({&key, 1}));
  }
  while (true) {
    absl::StatusOr<v1::Batch> batch = client_.Get(key, kPoll);
    if (absl::IsDeadlineExceeded(batch.status())) {
      MILLRACE_RETURN_IF_ERROR(wait(ToStd(batch.status().message())));
      continue;
    }
    if (batch.ok()) {
      asked_.erase(key);
      Fill();
    }
    return batch;
  }
}

void BatchFeed::Forget(const std::vector<BatchKey>& keys) {
  for (const BatchKey& key : keys) {
    std::erase(wanted_, key);
    asked_.erase(key);
  }
  client_.Forget(keys);
  Fill();
}

}  // namespace millrace
