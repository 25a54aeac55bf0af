#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/batch_key.h"
#include "common/batch_requests.h"
#include "common/mutex.h"
#include "common/replica_choice.h"
#include "millrace/v1/data.pb.h"

namespace grpc {
class Channel;
}
namespace prometheus {
class Counter;
}

namespace millrace {

class IdentifyCall;

// Gets batches from the data service: ask ahead, fetch when needed. One stream; when it breaks, the client opens
// another with back-off and asks again for what has not come, so a restart of the service shows as a delay and nothing
// else. Any replica of the service has every batch, so that of several one is asked at a time, and the next one when it
// is lost, brings nothing for a while or refuses (replica_choice.h).
//
//   BatchClient client({.addresses = {"127.0.0.1:7100"}, .plan = plan, .image_bytes = 784});
//   client.Request(keys);                                         // returns at once
//   absl::StatusOr<v1::Batch> batch = client.Get(keys[0], absl::Seconds(1));
//
// Threads: all methods may be called from any thread; nothing but Get waits. The client has one thread of its own,
// which keeps the stream open, and works on gRPC's threads otherwise.
class BatchClient {
 public:
  struct Options {
    // Of the replicas, at least one, as MakeChannel takes them; the preferred one first.
    std::vector<std::string> addresses;
    // Its fingerprint should be set: a service with another dataset is then refused.
    v1::BatchPlan plan;
    uint64_t image_bytes = 0;               // channels * height * width: what a batch must have per sample. 0: any
    prometheus::Counter* breaks = nullptr;  // counts streams that were lost, or left for their silence; may be null
    ReplicaChoice::Options choice = {};     // the number of replicas is set by the client
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
  };

  explicit BatchClient(Options options);
  // Gets of other threads must have returned.
  ~BatchClient();
  BatchClient(const BatchClient&) = delete;
  BatchClient& operator=(const BatchClient&) = delete;

  // Asks for batches; they come in the order in which they are asked for. Keys that are asked for already are skipped.
  // RESOURCE_EXHAUSTED if there would be more than BatchRequests::kKeysMax; nothing is asked for then.
  absl::Status Request(std::span<const BatchKey> keys);

  // Waits for a batch that was asked for, and hands it over: it must be asked for again to be got again.
  // DEADLINE_EXCEEDED after `timeout`: the message says what is waited for, and the call may be repeated.
  // FAILED_PRECONDITION if the key was not asked for. A permanent refusal by the service, by every replica
  // (another dataset, a key that does not exist, DATA_LOSS when batches keep arriving damaged), ends every present and
  // later Get with that error.
  absl::StatusOr<v1::Batch> Get(const BatchKey& key, absl::Duration timeout);

  // These will not be fetched.
  void Forget(std::span<const BatchKey> keys);

 private:
  class Session;
  struct Replica {
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    absl::Status error = {};   // why it was lost last; OK once it has answered again
    int damaged_in_a_row = 0;  // batches
  };

  void Run();
  // Until the stream is over. OK if it ended by itself, else why it was left: DEADLINE_EXCEEDED for its silence,
  // CANCELLED because the first replica is there again.
  absl::Status Watch(Session& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Asks the first replica in the background, when it is time to.
  bool FirstIsBack(std::unique_ptr<IdentifyCall>& look) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The current replica was lost. Returns how long to wait before the next one is asked; sets the failure if none is
  // left.
  absl::Duration Lose(const absl::Status& why, bool silent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Called by the session on gRPC's threads.
  std::optional<v1::BatchRange> NextRange() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(v1::Batch batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // "the data service at 127.0.0.1:7100 (not connected: connection refused)", or of several, if all are lost, what
  // DescribeSilence says.
  std::string DescribeService() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;

  mutable Mutex mutex_;
  CondVar changed_;  // a batch arrived, the stream ended, or the client is to stop
  std::vector<Replica> replicas_ ABSL_GUARDED_BY(mutex_);
  ReplicaChoice choice_ ABSL_GUARDED_BY(mutex_);
  BatchRequests requests_ ABSL_GUARDED_BY(mutex_);
  Session* session_ ABSL_GUARDED_BY(mutex_) = nullptr;  // the open stream, if there is one
  bool answered_ ABSL_GUARDED_BY(mutex_) = false;       // this stream has brought a batch
  absl::Time heard_ ABSL_GUARDED_BY(mutex_);            // of it; or since when it owes something
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);        // permanent
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;  // last: it uses everything above
};

// Gets steps [0, steps) of the validation or test split in order, with some of them asked for ahead, and calls `use` on
// each; stops at its first error. `timeout` is for each batch. CANCELLED soon after `stop` says so.
absl::Status ForEachBatch(BatchClient& client, v1::Split split, uint64_t steps, absl::Duration timeout,
                          const std::stop_token& stop, absl::FunctionRef<absl::Status(const v1::Batch&)> use);

}  // namespace millrace
