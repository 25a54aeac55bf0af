// Makes the shard of this process once the plan is known, and serves it.
//
// Threads: Serve once, from one thread; the rest from any.
#pragma once

#include <cstdint>
#include <functional>
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
  // `on_broken`: what Shard::OnBroken calls.
  ShardHost(uint32_t num_shards, Metrics* metrics, std::function<void(const absl::Status&)> on_broken)
      : num_shards_(num_shards), metrics_(metrics), on_broken_(std::move(on_broken)) {}

  // Initial weights, or those of the plan's checkpoint; then the service answers. Takes as long as reading the
  // checkpoint. Errors as Shard::Create and Shard::LoadCheckpoint.
  absl::Status Serve(const v1::JobPlan& plan, const v1::ShardInfo& info);

  grpc::Service* service() { return &service_; }
  bool serving() const { return service_.serving(); }
  // Ends all exchanges, so that the server can drain.
  void Close() { service_.CloseExchanges(); }
  // "shard 1: version 812, waiting for step 812: slots 5-7"; empty before Serve.
  std::string StatusLine() const;

 private:
  const uint32_t num_shards_;
  Metrics* const metrics_;
  const std::function<void(const absl::Status&)> on_broken_;
  mutable Mutex mutex_;
  std::unique_ptr<Shard> shard_ ABSL_GUARDED_BY(mutex_);  // outlives service_
  ParameterService service_;
};

}  // namespace millrace
