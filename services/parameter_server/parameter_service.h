// The gRPC side of a shard: implements v1.ParameterServer over a Shard. A shard is made from the plan of a run, and for
// the plan its process must be reachable first: until Serve, and between two runs, every call is answered with
// UNAVAILABLE.
//
// Exchange, FetchWeights and SumNorm run on gRPC's callback threads; the first two carry the bulk messages as raw bytes
// (common/tensor/wire.h): gradients are summed where they were received, weights are sent from the buffer they were
// computed in. The other calls are synchronous, because SaveCheckpoint waits for the disk.
//
// An exchange speaks as follows. The first request is `open`; another run's id is FAILED_PRECONDITION, as is the end of
// the run. Then chunks of
// pushes, in order of offset; the ack of a push answers its last chunk, even if all of it was held already. The newest
// weights are sent at once, and those of every step while it is applied, chunk by chunk from offset 0. A version is
// left unfinished when a newer one is whole. The rest of a version may also be long in coming, for as long as nobody
// pushes the rest of its gradients: who needs the version before it has FetchWeights. A request that breaks the
// protocol ends the exchange with INVALID_ARGUMENT.
//
// Threads: any. Ownership: what is called holds the shard until the call is over; the service must outlive the server
// it is added to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/parameter.grpc.pb.h"
#include "services/parameter_server/shard.h"

namespace millrace {

class ExchangeReactor;
class Metrics;
struct ShardMetrics;

class ParameterService final : public v1::ParameterServer::WithRawCallbackMethod_Exchange<
                                   v1::ParameterServer::WithRawCallbackMethod_FetchWeights<
                                       v1::ParameterServer::WithCallbackMethod_SumNorm<v1::ParameterServer::Service>>> {
 public:
  ParameterService();
  ~ParameterService() override;

  // From now on calls are about `shard`, whose first gradient they bring. Always with the same metrics.
  void Serve(std::shared_ptr<Shard> shard, Metrics* metrics);
  // Ends the exchanges of the run that was served, if any: nothing is until the next Serve.
  void EndRun();
  bool serving() const { return served().shard != nullptr; }

  // Ends every open exchange, and every later one, with UNAVAILABLE, and the calls that wait for the norms of other
  // shards: they would otherwise hold up a drain.
  void CloseExchanges();

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Exchange(grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchWeights(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* SumNorm(grpc::CallbackServerContext* context, const v1::NormPart* request,
                                    v1::NormTotal* response) override;
  grpc::Status SaveCheckpoint(grpc::ServerContext* context, const v1::SaveCheckpointRequest* request,
                              v1::SaveCheckpointResponse* response) override;
  grpc::Status ReleaseSnapshot(grpc::ServerContext* context, const v1::ReleaseSnapshotRequest* request,
                               v1::ReleaseSnapshotResponse* response) override;
  grpc::Status GetShardStatus(grpc::ServerContext* context, const v1::GetShardStatusRequest* request,
                              v1::ShardStatus* response) override;

 private:
  friend class ExchangeReactor;

  struct Served {
    std::shared_ptr<Shard> shard;  // null before Serve and between runs
    ShardMetrics* metrics;
  };
  Served served() const;
  // What is served, if it is of this run.
  absl::StatusOr<Served> ServedRun(uint64_t run_id) const;
  absl::StatusOr<Served> ServedRunLocked(uint64_t run_id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The shard that the exchange is with from now on: that of this run.
  absl::StatusOr<std::shared_ptr<Shard>> Register(ExchangeReactor* exchange, uint64_t run_id);
  void Unregister(ExchangeReactor* exchange);
  void Broadcast(const Shard* shard, const WeightsProgress& progress);

  // A run that is over may still be writing its file of a checkpoint when the next one wants to write the same.
  Mutex save_mutex_;

  mutable Mutex mutex_;
  std::shared_ptr<Shard> shard_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ShardMetrics> metrics_ ABSL_GUARDED_BY(mutex_);  // from the first Serve
  std::map<ExchangeReactor*, const Shard*> exchanges_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace millrace
