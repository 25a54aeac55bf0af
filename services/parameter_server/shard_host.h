// Makes the shard of this process once the plan of a run is known, and serves it until it is told of another run.
//
// Threads: Serve from one thread; the rest from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/parameter_service.h"
#include "services/parameter_server/shard.h"

namespace millrace {

class ShardHost {
 public:
  // `coordinator`: the address of shard 0, for the others, and how to speak to it.
  ShardHost(uint32_t num_shards, std::string coordinator, std::shared_ptr<grpc::ChannelCredentials> credentials,
            Metrics* metrics)
      : num_shards_(num_shards),
        coordinator_(std::move(coordinator)),
        credentials_(std::move(credentials)),
        metrics_(metrics) {}

  // Ends the run that was served, if any. Then the state that the plan starts from: initial weights, those kept in
  // memory since the plan's version was committed, else those of its checkpoint, which takes as long as reading it.
  // Then the service answers. A failure is what health() says.
  void Serve(const v1::JobPlan& plan, const v1::ShardInfo& info);

  // How the shard takes part in the run that it was told of last.
  struct Health {
    uint64_t run_id = 0;   // 0 before the first
    uint64_t version = 0;  // of the newest whole weights
    absl::Status broken;   // why it could not begin, or cannot apply a step and never will
  };
  Health health() const;

  grpc::Service* service() { return &service_; }
  bool serving() const { return service_.serving(); }
  // Ends all exchanges, so that the server can drain.
  void Close() { service_.CloseExchanges(); }
  // "shard 1: version 812, waiting for step 812: slots 5-7"; empty before Serve.
  std::string StatusLine() const;

 private:
  absl::StatusOr<std::shared_ptr<Shard>> MakeShard(const v1::JobPlan& plan, const v1::ShardInfo& info,
                                                   std::shared_ptr<const Shard::Snapshot> kept) const;
  std::shared_ptr<NormExchange> MakeNorms(const v1::JobPlan& plan, const v1::ShardInfo& info) const;
  void NoteBroken(uint64_t run_id, const absl::Status& why);

  const uint32_t num_shards_;
  const std::string coordinator_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  Metrics* const metrics_;
  mutable Mutex mutex_;
  std::shared_ptr<Shard> shard_ ABSL_GUARDED_BY(mutex_);
  uint64_t run_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);  // of run run_id_
  ParameterService service_;
};

}  // namespace millrace
