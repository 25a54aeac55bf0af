#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "millrace/v1/data.pb.h"
#include "services/data/augmenter.h"
#include "services/data/batches.h"
#include "services/data/data_metrics.h"
#include "services/data/dataset.h"
#include "services/data/request_queue.h"

namespace millrace {

// One StreamBatches call. It reads requests as they come and writes one batch at a time, made only when the one before
// has left: a slow client costs one batch of memory, whatever it asked for.
//
// Threads: gRPC's, several at once for one stream (a read and a write may end together). Nothing blocks.
class BatchStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // `peer` names the client. `closed` is called once, last of all: the stream may be destroyed in it.
  BatchStream(std::string peer, DataMetrics& metrics, std::function<void(BatchStream*)> closed);
  ~BatchStream() override;

  // Begins to read requests; before this the stream waits.
  void Begin(std::shared_ptr<const Dataset> dataset);

  // Ends the call with `status` (not OK) after the batch that is being written, if there is one. Repeats do nothing.
  void End(const absl::Status& status);

  // One line: what was sent, what it waits for.
  std::string Describe() const;

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  absl::Status Accept(const v1::BatchRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AcceptPlan(const v1::BatchPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sends the next batch if there is one and none is on its way.
  void SendNext();
  // Finishes the call if it is to be finished and nothing is being written.
  void FinishIfDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool ended() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return end_.has_value(); }

  const std::string peer_;
  DataMetrics& metrics_;
  const std::function<void(BatchStream*)> closed_;

  grpc::ByteBuffer read_buffer_;   // belongs to the read in progress
  grpc::ByteBuffer write_buffer_;  // belongs to whoever set sending_

  mutable Mutex mutex_;
  std::shared_ptr<const Dataset> dataset_ ABSL_GUARDED_BY(mutex_);         // from Begin on
  std::shared_ptr<const BatchSchedule> schedule_ ABSL_GUARDED_BY(mutex_);  // from the first message on
  std::shared_ptr<const Augmenter> augmenter_ ABSL_GUARDED_BY(mutex_);     // from then on; null: images as they are
  v1::BatchPlan plan_ ABSL_GUARDED_BY(mutex_);
  RequestQueue queue_ ABSL_GUARDED_BY(mutex_);
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;             // a batch is being made or written
  bool all_asked_ ABSL_GUARDED_BY(mutex_) = false;           // the client has closed its side
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // what the call is to end with
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;            // Finish() was called: no operation may be started
  absl::Time since_ ABSL_GUARDED_BY(mutex_);                 // of the present wait, for requests or for the write
  uint64_t batches_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t samples_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_sent_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace
