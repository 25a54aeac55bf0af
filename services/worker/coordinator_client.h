// The worker's connection to the coordinator: says hello, receives leases, sends reports and heartbeats.
//
// Two threads of its own: one reads the stream into a bounded queue, one sends a heartbeat each interval, so that a
// worker in a long computation is not taken for dead.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "grpcpp/client_context.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/worker/ports.h"

namespace millrace {

// Threads: any.
class CoordinatorClient : public LeaseLink {
 public:
  struct Options {
    std::string address;
    v1::Hello hello;
    // What a heartbeat says the worker waits for; called on the heartbeat thread.
    std::function<std::string()> waiting_for;
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
  };

  // Connects and waits to be welcomed, for as long as `wait` allows. Otherwise the error with which the coordinator
  // ended the stream; UNAVAILABLE if it is not there.
  static absl::StatusOr<std::unique_ptr<CoordinatorClient>> Connect(Options options, WaitCallback wait);
  // Ends the stream: politely, within two seconds.
  ~CoordinatorClient() override;

  // Fixed once connected.
  const v1::Welcome& welcome() const { return welcome_; }

  absl::StatusOr<std::optional<Event>> Next(absl::Duration timeout) override;
  void Report(const v1::Report& report) override;
  void Decline(uint64_t lease_id, std::string_view reason, bool weights_gone) override;
  void Leave() override;

 private:
  // The coordinator keeps two leases out; a queue this long means that it does not know what it does.
  static constexpr size_t kMaxQueued = 64;

  explicit CoordinatorClient(Options options);

  absl::Status AwaitWelcome(WaitCallback wait);
  void ReadUntilEnd();
  void BeatUntilEnd();
  void Send(const v1::WorkerMessage& message);

  const Options options_;
  const std::unique_ptr<v1::Coordinator::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> stream_;
  v1::Welcome welcome_;  // written by the reader before `welcomed_`, not changed after

  Mutex write_mutex_;  // one writer at a time; reading goes on beside it

  Mutex mutex_;
  CondVar changed_;
  bool welcomed_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // set once the stream has ended
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread reader_;
  std::thread heart_;
};

}  // namespace millrace
