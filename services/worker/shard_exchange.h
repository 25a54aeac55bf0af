// One worker's exchange with one shard: pushes gradient pieces straight from the gradient's memory, receives weights
// straight into the flat parameter vector, and opens the stream again when it breaks. Driven by ParameterClient.
//
// A stream that ends with a transient error is opened again with back-off; a push that was not acknowledged starts over
// (the shard ignores what it holds already), and the shard sends its current weights from the beginning. A refusal
// (another run, a broken protocol) is final for the exchange; one by a shard of another run only ends the worker's
// session, since the coordinator knows of the new run.
//
// Threads: the one thread that polls the completion queue.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/backoff.h"
#include "common/tensor/wire.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/parameter.grpc.pb.h"
#include "services/worker/ports.h"
#include "services/worker/weights_inbox.h"
#include "services/worker/worker_metrics.h"

namespace millrace {

class ShardExchange {
 public:
  struct Options {
    v1::ShardInfo shard;
    v1::OpenExchange hello;
    std::span<float> parameters;                            // the shard's range of the flat vector
    v1::NumberFormat wire = v1::NUMBER_FORMAT_UNSPECIFIED;  // the job's
    // Without a sign of progress while something is owed, the stream is broken and opened again. The rest of a version
    // counts, though it may only be late: a new stream begins with a whole one.
    absl::Duration stall_timeout;
  };

  ShardExchange(Options options, std::shared_ptr<grpc::Channel> channel, grpc::CompletionQueue* queue,
                const WorkerMetrics* metrics);
  ~ShardExchange();
  ShardExchange(const ShardExchange&) = delete;
  ShardExchange& operator=(const ShardExchange&) = delete;

  // An event of this exchange's streams, as the completion queue gave it.
  struct Event;
  static void Handle(Event* event, bool ok);

  // Opens the stream if it is closed and the back-off is over; breaks one that has stalled. Call at least once a
  // second.
  void Tick(absl::Time now);
  // Breaks the stream for good; its last events still come.
  void Close();
  bool closed() const { return call_ == nullptr; }

  // Why the shard refused; OK as long as it has not. UNAVAILABLE: a new session with the coordinator may help.
  const absl::Status& refusal() const { return refusal_; }

  std::optional<uint64_t> version() const { return inbox_.version(); }
  bool must_fetch(uint64_t version) const { return inbox_.must_fetch(version); }
  // Reads `version` into the range; blocks for one call, about a second at most, more only for a range of many
  // megabytes. NOT_FOUND if the shard does not have it any more. A newer version that the range held or was getting is
  // fetched when its turn comes.
  absl::Status Fetch(uint64_t version);

  void StartPush(const GradientPush& push);
  bool push_done() const { return !push_.has_value(); }
  void AbandonPush() { push_.reset(); }

  // "shard 0 at 127.0.0.1:7200", with the last error while the stream is down.
  std::string Describe() const;

 private:
  struct Call;

  void Open(absl::Time now);
  void OnEvent(Event* event, bool ok);
  void OnMessage(const grpc::ByteBuffer& message);
  void Acknowledge(const v1::PushAck& ack);
  void WriteNext();
  void OnEnd(const grpc::Status& status);
  void Break(absl::Status why);

  const Options options_;
  grpc::GenericStub stub_;
  const std::unique_ptr<v1::ParameterServer::Stub> fetch_stub_;
  grpc::CompletionQueue* const queue_;
  const WorkerMetrics& metrics_;
  Backoff backoff_;

  std::unique_ptr<Call> call_;  // the open stream
  bool closing_ = false;
  absl::Time next_open_ = absl::InfinitePast();
  absl::Time progress_ = absl::InfinitePast();  // when the last event came, or the last duty began
  absl::Status refusal_;
  absl::Status last_error_;

  WeightsInbox inbox_;

  std::optional<GradientPush> push_;
  uint64_t push_offset_ = 0;  // elements of the range written on this stream
};

}  // namespace millrace
