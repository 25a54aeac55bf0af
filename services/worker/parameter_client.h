// The worker's side of the parameter server: one exchange with each shard, all driven by the step loop's own thread, so
// that a step costs no thread switch.
//
// While the loop computes, nobody reads: what arrives waits in the socket, which is as it should be, since the weights
// must not change then.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/completion_queue.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/worker/ports.h"
#include "services/worker/shard_exchange.h"
#include "services/worker/worker_metrics.h"

namespace millrace {

// Threads: one at a time.
class ParameterClient : public ParameterLink {
 public:
  struct Options {
    uint64_t run_id = 0;
    std::string worker;
    uint64_t incarnation = 0;
    std::vector<v1::ShardInfo> shards;                      // in order, covering the whole vector
    std::span<float> parameters;                            // the flat vector; must outlive the client
    v1::NumberFormat wire = v1::NUMBER_FORMAT_UNSPECIFIED;  // the job's
    absl::Duration stall_timeout = absl::Seconds(30);
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
  };

  // Does not connect: exchanges are opened by the first wait. INVALID_ARGUMENT if the shards do not cover the vector.
  static absl::StatusOr<std::unique_ptr<ParameterClient>> Create(Options options, const WorkerMetrics* metrics);
  ~ParameterClient() override;

  absl::StatusOr<Weights> AwaitVersion(uint64_t version, WaitCallback wait) override;
  absl::StatusOr<uint64_t> AwaitNewest(uint64_t version, WaitCallback wait) override;
  absl::Status Push(const GradientPush& push, WaitCallback wait) override;

 private:
  ParameterClient(const Options& options, const WorkerMetrics* metrics);

  // Handles what has arrived; waits up to `timeout` for the first of it. False if nothing came.
  bool HandleEvent(absl::Duration timeout);
  // Handles events until `done` or a refusal. `what` names what is waited for.
  absl::Status PollUntil(absl::FunctionRef<bool()> done, absl::FunctionRef<std::string()> what, WaitCallback wait);

  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<ShardExchange>> exchanges_;
};

}  // namespace millrace
