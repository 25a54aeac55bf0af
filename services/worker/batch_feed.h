// The data service as the step loop sees it: hands BatchClient what to ask ahead for, a bounded window at a time.
#pragma once

#include <cstddef>
#include <deque>
#include <set>
#include <vector>

#include "common/batch_client.h"
#include "services/worker/ports.h"

namespace millrace {

// Threads: one at a time.
class BatchFeed : public BatchSource {
 public:
  // Batches on their way or waiting to be used: more would hold memory without being faster.
  static constexpr size_t kWindow = 64;

  explicit BatchFeed(BatchClient* client) : client_(*client) {}

  void Prefetch(const std::vector<BatchKey>& keys) override;
  absl::StatusOr<v1::Batch> Get(const BatchKey& key, WaitCallback wait) override;
  void Forget(const std::vector<BatchKey>& keys) override;

 private:
  // Asks for wanted batches as far as the window allows.
  void Fill();

  BatchClient& client_;
  std::deque<BatchKey> wanted_;  // not asked for yet
  std::set<BatchKey> asked_;
};

}  // namespace millrace
