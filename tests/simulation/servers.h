// The parameter-server processes of a simulated job: shards, and the coordinator that the first of them hosts. In place
// of CoordinatingServer, FollowingServer, Checkpointer's thread and the gRPC fleet; all that decides is production
// code.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "services/parameter_server/checkpointer.h"
#include "services/parameter_server/coordinator.h"
#include "services/parameter_server/shard.h"
#include "tests/simulation/disk.h"
#include "tests/simulation/exchange_link.h"
#include "tests/simulation/network.h"
#include "tests/simulation/toy_job.h"
#include "tests/simulation/work_link.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

inline constexpr char kOutputDirectory[] = "/output";

class Server;

// What all parts of a simulated job share. Everything pointed to outlives them.
struct Job {
  World* world;
  Network* network;
  Disk* disk;
  Metrics* metrics;
  const Reference* reference;
  v1::JobPlan plan;  // without what belongs to one run
  uint32_t num_shards;
  Ledger::Limits limits;
  absl::Duration tick;
  size_t keep_checkpoints;

  std::vector<std::unique_ptr<Server>> servers;  // by shard; null while a process is down
  uint64_t committed = 0;                        // newest version whose commit was announced
  uint64_t epochs_checked = 0;                   // as wholes
  uint64_t begun = 0;                            // newest version whose commit was begun
};

// One life of one parameter-server process; its end is a kill.
class Server {
 public:
  Server(Job* job, uint32_t shard);
  ~Server();

  Process& process() { return *process_; }
  ShardPeer& shard_peer() { return shard_peer_; }
  CoordinatorPeer* coordinator_peer() { return coordinator_peer_.get(); }  // null but for shard 0
  // Why the process ended of itself.
  const absl::Status& ended() const { return ended_; }

 private:
  class Fleet;
  class Queue;
  class Tap;

  absl::Status Coordinate();
  absl::StatusOr<RunStart> FindStart();
  void AskVisits(const v1::JobPlan& plan, const v1::VisitCheck& check);
  using RegisterCall = std::function<absl::StatusOr<v1::RegisterShardResponse>(const v1::RegisterShardRequest&)>;
  absl::Status Follow(const RegisterCall& call);
  absl::StatusOr<v1::RegisterShardResponse> RegisterWithCoordinator(const v1::RegisterShardRequest& request);
  void Serve(const v1::JobPlan& plan, const v1::ShardInfo& info);
  absl::StatusOr<std::shared_ptr<Shard>> MakeShard(const v1::JobPlan& plan, const v1::ShardInfo& info,
                                                   std::shared_ptr<const Shard::Snapshot> kept);
  void CheckApplied(const Shard& shard, const WeightsProgress& progress);
  v1::RegisterShardRequest Registration() const;

  Job& job_;
  const uint32_t index_;
  const uint64_t incarnation_;
  const std::shared_ptr<Process> process_;
  const std::unique_ptr<FileSystem> files_;
  absl::Status ended_;

  ShardPeer shard_peer_;
  uint64_t run_id_ = 0;  // that was served last, or tried to
  absl::Status broken_;  // why it could not be
  bool saving_ = false;  // one checkpoint at a time

  std::unique_ptr<CoordinatorPeer> coordinator_peer_;
  std::optional<CheckpointStore> store_;
  std::unique_ptr<Tap> tap_;
  std::unique_ptr<Coordinator> coordinator_;
  CheckpointQueue* queue_ = nullptr;  // the coordinator's
};

}  // namespace millrace::simulation
