#include "services/parameter_server/shard_fleet.h"

#include <bit>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/parameter.grpc.pb.h"

namespace millrace {
namespace {

constexpr absl::Duration kSaveDeadline = absl::Minutes(2);  // a disk may be slow
constexpr absl::Duration kFetchDeadline = absl::Minutes(2);
constexpr absl::Duration kReleaseDeadline = absl::Seconds(5);
// The coordinator hears of a complete step from the workers, a moment before the shards have applied it.
constexpr absl::Duration kCatchUp = absl::Seconds(10);
constexpr absl::Duration kRetryFirst = absl::Milliseconds(5);
constexpr absl::Duration kRetryMax = absl::Milliseconds(250);

// Cancels the calls of a fleet.
class Cancellation {
 public:
  // Runs `call` with a context that Cancel reaches.
  grpc::Status Run(absl::Duration timeout, const std::function<grpc::Status(grpc::ClientContext&)>& call) {
    grpc::ClientContext context;
    SetDeadline(context, timeout);
    {
      MutexLock lock(&mutex_);
      if (cancelled_) return grpc::Status(grpc::StatusCode::CANCELLED, "shutting down");
      contexts_.insert(&context);
    }
    grpc::Status status = call(context);
    MutexLock lock(&mutex_);
    contexts_.erase(&context);
    return status;
  }
  // False if cancelled meanwhile.
  bool Wait(absl::Duration time) {
    MutexLock lock(&mutex_);
    const absl::Time until = absl::Now() + time;
    while (!cancelled_ && absl::Now() < until) changed_.WaitWithTimeout(&mutex_, until - absl::Now());
    return !cancelled_;
  }
  void Cancel() {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
    changed_.SignalAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mutex_);
};

class GrpcShardFleet : public ShardFleet {
 public:
  GrpcShardFleet(const v1::JobPlan& plan, const std::vector<v1::ShardInfo>& shards,
                 const std::shared_ptr<grpc::ChannelCredentials>& credentials)
      : run_id_(plan.run_id()), parameter_count_(plan.parameter_count()) {
    for (const v1::ShardInfo& info : shards) {
      peers_.push_back({info, v1::ParameterServer::NewStub(MakeChannel(info.address(), credentials))});
    }
  }

  absl::StatusOr<std::vector<v1::SaveCheckpointResponse>> Save(uint64_t version,
                                                               const std::string& directory) override {
    v1::SaveCheckpointRequest request;
    request.set_run_id(run_id_);
    request.set_version(version);
    request.set_directory(directory);
    std::vector<v1::SaveCheckpointResponse> saved(peers_.size());
    MILLRACE_RETURN_IF_ERROR(ForAll([&](size_t i) { return SaveOne(peers_[i], request, &saved[i]); }));
    return saved;
  }

  absl::StatusOr<std::vector<float>> FetchWeights(uint64_t version) override {
    v1::FetchWeightsRequest request;
    request.set_run_id(run_id_);
    request.set_version(version);
    std::vector<float> weights(parameter_count_);
    MILLRACE_RETURN_IF_ERROR(ForAll([&](size_t i) {
      const v1::ShardInfo& info = peers_[i].info;
      return FetchOne(peers_[i], request, std::span(weights).subspan(info.begin(), info.end() - info.begin()));
    }));
    return weights;
  }

  void Release(uint64_t version, bool committed) override {
    v1::ReleaseSnapshotRequest request;
    request.set_run_id(run_id_);
    request.set_version(version);
    request.set_committed(committed);
    const absl::Status status = ForAll([&](size_t i) {
      v1::ReleaseSnapshotResponse response;
      return Named(peers_[i], cancellation_.Run(kReleaseDeadline, [&](grpc::ClientContext& context) {
        return peers_[i].stub->ReleaseSnapshot(&context, request, &response);
      }));
    });
    if (!status.ok() && !absl::IsCancelled(status)) {
      LogWarning("snapshot could not be released", {{"version", version}, {"reason", status}});
    }
  }

  void Cancel() override { cancellation_.Cancel(); }

 private:
  struct Peer {
    v1::ShardInfo info;
    std::unique_ptr<v1::ParameterServer::Stub> stub;
  };

  static absl::Status Named(const Peer& peer, const grpc::Status& status) {
    if (status.ok()) return absl::OkStatus();
    const absl::Status plain = FromGrpcStatus(status);
    return absl::Status(plain.code(), absl::StrCat("shard ", peer.info.shard(), ": ", plain.message()));
  }

  // Runs `task` for every peer in parallel; the first error by shard number.
  absl::Status ForAll(const std::function<absl::Status(size_t)>& task) {
    std::vector<absl::Status> results(peers_.size());
    {
      std::vector<std::jthread> threads;
      for (size_t i = 1; i < peers_.size(); ++i) threads.emplace_back([&, i] { results[i] = task(i); });
      results[0] = task(0);
    }
    for (const absl::Status& result : results) MILLRACE_RETURN_IF_ERROR(result);
    return absl::OkStatus();
  }

  absl::Status SaveOne(const Peer& peer, const v1::SaveCheckpointRequest& request,
                       v1::SaveCheckpointResponse* response) {
    Backoff backoff(kRetryFirst, kRetryMax);
    const absl::Time give_up = absl::Now() + kCatchUp;
    for (;;) {
      const grpc::Status status = cancellation_.Run(kSaveDeadline, [&](grpc::ClientContext& context) {
        return peer.stub->SaveCheckpoint(&context, request, response);
      });
      const bool retry =
          status.error_code() == grpc::StatusCode::NOT_FOUND || status.error_code() == grpc::StatusCode::UNAVAILABLE;
      if (!retry || absl::Now() > give_up || !cancellation_.Wait(backoff.Next())) return Named(peer, status);
    }
  }

  absl::Status FetchOne(const Peer& peer, const v1::FetchWeightsRequest& request, std::span<float> out) {
    static_assert(std::endian::native == std::endian::little);
    uint64_t received = 0;  // elements
    absl::Status fault;
    const grpc::Status status = cancellation_.Run(kFetchDeadline, [&](grpc::ClientContext& context) {
      const auto reader = peer.stub->FetchWeights(&context, request);
      v1::WeightsChunk chunk;
      while (reader->Read(&chunk)) {
        const uint64_t count = chunk.values().size() / sizeof(float);
        if (chunk.version() != request.version() || chunk.offset() != received || count > out.size() - received) {
          fault = absl::InternalError(absl::StrCat("shard ", peer.info.shard(), " sent weights out of order"));
          context.TryCancel();
          break;
        }
        std::memcpy(out.data() + received, chunk.values().data(), count * sizeof(float));
        received += count;
      }
      return reader->Finish();
    });
    MILLRACE_RETURN_IF_ERROR(fault);
    MILLRACE_RETURN_IF_ERROR(Named(peer, status));
    if (received == out.size()) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("shard ", peer.info.shard(), " sent ", received, " of ", out.size(), " weights"));
  }

  const uint64_t run_id_;
  const uint64_t parameter_count_;
  std::vector<Peer> peers_;
  Cancellation cancellation_;
};

}  // namespace

std::unique_ptr<ShardFleet> MakeGrpcShardFleet(const v1::JobPlan& plan, const std::vector<v1::ShardInfo>& shards,
                                               const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  return std::make_unique<GrpcShardFleet>(plan, shards, credentials);
}

}  // namespace millrace
