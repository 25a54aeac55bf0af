// One open Exchange call (the protocol is in parameter_service.h). Lives from the call's start until OnDone, then
// deletes itself.
//
// Threads: gRPC runs the On... methods on its callback threads, reads one after the other, writes likewise; Offer and
// End come from any thread. read_mutex_ is held while a request is handled, and is taken before every other lock: it
// has no rival and only makes visible, also to the thread sanitizer, that reads follow each other. Nothing of the
// service or the shard is called with mutex_ held.
#pragma once

#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "common/tensor/wire.h"
#include "grpcpp/grpcpp.h"
#include "services/parameter_server/shard.h"
#include "services/parameter_server/weights_outbox.h"

namespace millrace {

class ParameterService;
struct ShardMetrics;

class ExchangeReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  ExchangeReactor(ParameterService* service, ShardMetrics* metrics);
  ~ExchangeReactor() override;

  // Sends what is ready of `progress` and not sent yet, unless a newer version has been offered.
  void Offer(const WeightsProgress& progress);

  // Ends the call with `status` once the write in progress is over; only the first call counts.
  void End(const absl::Status& status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  absl::Status HandleRequest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(read_mutex_);
  absl::Status Open(const v1::OpenExchange& open) ABSL_EXCLUSIVE_LOCKS_REQUIRED(read_mutex_);
  absl::Status Push(const GradientChunkView& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(read_mutex_);
  absl::Status Acknowledge(const GradientChunkHeader& push);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ParameterService* const service_;
  ShardMetrics* const metrics_;

  Mutex read_mutex_;
  std::shared_ptr<Shard> shard_ ABSL_GUARDED_BY(read_mutex_);  // from open on
  grpc::ByteBuffer request_ ABSL_GUARDED_BY(read_mutex_);
  MessageView view_ ABSL_GUARDED_BY(read_mutex_);

  Mutex mutex_;
  std::deque<v1::PushAck> acks_ ABSL_GUARDED_BY(mutex_);
  WeightsOutbox outbox_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer response_ ABSL_GUARDED_BY(mutex_);  // of the write in progress
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Status final_status_ ABSL_GUARDED_BY(mutex_);  // once ending
};

}  // namespace millrace
