// All shards of a job, as the checkpointer sees them. Shard 0 is reached over its address like any other, so there is
// one path.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/parameter.pb.h"

namespace grpc {
class ChannelCredentials;
}

namespace millrace {

// Threads: one at a time, but for Cancel, which any thread may call.
class ShardFleet {
 public:
  virtual ~ShardFleet() = default;

  // Every shard writes its file of `version` into `directory`, in parallel; by shard number. The first error otherwise.
  // A shard that has not quite reached the version is waited for.
  virtual absl::StatusOr<std::vector<v1::SaveCheckpointResponse>> Save(uint64_t version,
                                                                       const std::string& directory) = 0;
  // The whole flat vector at `version`, which must be held as a snapshot.
  virtual absl::StatusOr<std::vector<float>> FetchWeights(uint64_t version) = 0;
  // Lets the shards free their snapshots of `version`, or keep them as the newest that is committed. Failures are
  // logged: the snapshot goes with the shard.
  virtual void Release(uint64_t version, bool committed) = 0;

  // Makes calls in progress and later ones fail soon with CANCELLED.
  virtual void Cancel() = 0;
};

// `shards` is complete and sorted by shard number; `credentials` as MakeChannel takes them.
std::unique_ptr<ShardFleet> MakeGrpcShardFleet(const v1::JobPlan& plan, const std::vector<v1::ShardInfo>& shards,
                                               const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

}  // namespace millrace
