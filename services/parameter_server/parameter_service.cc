#include "services/parameter_server/parameter_service.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "common/tensor/wire.h"
#include "common/thread_priority.h"
#include "services/parameter_server/exchange_reactor.h"
#include "services/parameter_server/norm_client.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {
namespace {

absl::Status Closed() { return absl::UnavailableError("the parameter server is shutting down"); }
absl::Status NotYet() { return absl::UnavailableError("the shard is starting: it waits for the job's plan"); }

class RefusedExchange final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedExchange(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

class RefusedFetch final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedFetch(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

// Streams one version as WeightsChunks, one write at a time, then ends. Deletes itself. gRPC calls it from changing
// threads, one after the other.
class FetchReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchReactor(WeightsVersion weights, v1::NumberFormat format, ShardMetrics* metrics)
      : format_(format), metrics_(metrics) {
    MutexLock lock(&mutex_);
    weights_ = std::move(weights);
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader is gone"));
    WriteNext();
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (next_offset_ == weights_.values.size()) return Finish(grpc::Status::OK);
    const uint64_t count = ChunkSize(weights_.values.size(), next_offset_);
    WireValues values = ToWire(format_, weights_.values.subspan(next_offset_, count), weights_.owner);
    metrics_->weight_bytes.Increment(static_cast<double>(values.bytes.size()));
    response_ = EncodeWeightsChunk({weights_.version, next_offset_}, std::move(values));
    next_offset_ += count;
    StartWrite(&response_);
  }

  const v1::NumberFormat format_;
  ShardMetrics* const metrics_;
  Mutex mutex_;
  WeightsVersion weights_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_offset_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::ByteBuffer response_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

ParameterService::ParameterService() = default;
ParameterService::~ParameterService() = default;

void ParameterService::Serve(std::shared_ptr<Shard> shard, Metrics* metrics) {
  EndRun();
  shard->OnApplied([this, of = shard.get()](const WeightsProgress& progress) { Broadcast(of, progress); });
  MutexLock lock(&mutex_);
  shard_ = std::move(shard);
  if (metrics_ == nullptr) metrics_ = std::make_unique<ShardMetrics>(metrics, shard_->index());
}

void ParameterService::EndRun() {
  std::shared_ptr<Shard> ended;  // freed after the lock
  MutexLock lock(&mutex_);
  ended = std::move(shard_);
  if (ended != nullptr) ended->CancelNorms();
  for (const auto& [exchange, shard] : exchanges_) {
    exchange->End(absl::FailedPreconditionError("the run is over: join the job again"));
  }
}

ParameterService::Served ParameterService::served() const {
  MutexLock lock(&mutex_);
  return {shard_, metrics_.get()};
}

absl::StatusOr<ParameterService::Served> ParameterService::ServedRun(uint64_t run_id) const {
  MutexLock lock(&mutex_);
  return ServedRunLocked(run_id);
}

absl::StatusOr<ParameterService::Served> ParameterService::ServedRunLocked(uint64_t run_id) const {
  if (shard_ == nullptr) return NotYet();
  const uint64_t ours = shard_->plan().run_id();
  if (run_id == ours) return Served{shard_, metrics_.get()};
  return absl::FailedPreconditionError(
      absl::StrCat("run ", run_id, " is not this one, ", ours, ": join the job again"));
}

absl::StatusOr<std::shared_ptr<Shard>> ParameterService::Register(ExchangeReactor* exchange, uint64_t run_id) {
  MutexLock lock(&mutex_);
  if (closed_) return Closed();
  MILLRACE_ASSIGN_OR_RETURN(Served now, ServedRunLocked(run_id));
  exchanges_[exchange] = now.shard.get();
  return std::move(now.shard);
}

void ParameterService::Unregister(ExchangeReactor* exchange) {
  MutexLock lock(&mutex_);
  exchanges_.erase(exchange);
}

void ParameterService::Broadcast(const Shard* shard, const WeightsProgress& progress) {
  MutexLock lock(&mutex_);
  for (const auto& [exchange, with] : exchanges_) {
    if (with == shard) exchange->Offer(progress);
  }
}

void ParameterService::CloseExchanges() {
  MutexLock lock(&mutex_);
  closed_ = true;
  for (const auto& [exchange, shard] : exchanges_) exchange->End(Closed());
  if (shard_ != nullptr) shard_->CancelNorms();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ParameterService::Exchange(
    grpc::CallbackServerContext* /*context*/) {
  const Served now = served();
  if (now.shard == nullptr) return new RefusedExchange(NotYet());
  return new ExchangeReactor(this, now.metrics);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ParameterService::FetchWeights(grpc::CallbackServerContext* /*context*/,
                                                                           const grpc::ByteBuffer* request) {
  const auto fetch = [&]() -> absl::StatusOr<FetchReactor*> {
    MessageView view;
    v1::FetchWeightsRequest wanted;
    MILLRACE_RETURN_IF_ERROR(view.Reset(*request));
    MILLRACE_RETURN_IF_ERROR(DecodeMessage(view, &wanted));
    MILLRACE_ASSIGN_OR_RETURN(const Served now, ServedRun(wanted.run_id()));
    MILLRACE_ASSIGN_OR_RETURN(WeightsVersion weights, now.shard->WeightsAt(wanted.version()));
    return new FetchReactor(std::move(weights), wanted.format(), now.metrics);
  };
  const absl::StatusOr<FetchReactor*> reactor = fetch();
  if (!reactor.ok()) return new RefusedFetch(reactor.status());
  return *reactor;
}

grpc::ServerUnaryReactor* ParameterService::SumNorm(grpc::CallbackServerContext* context, const v1::NormPart* request,
                                                    v1::NormTotal* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<Served> now = ServedRun(request->run_id());
  const absl::StatusOr<SquaredNorm> part = DecodeNorm(*request);
  if (!now.ok() || !part.ok()) {
    reactor->Finish(ToGrpcStatus(now.ok() ? part.status() : now.status()));
    return reactor;
  }
  now->shard->ReceiveNorm(request->shard(), request->step(), *part,
                          [reactor, response](const absl::StatusOr<SquaredNorm>& total) {
                            if (total.ok()) *response = EncodeNormTotal(*total);
                            reactor->Finish(ToGrpcStatus(total.status()));
                          });
  return reactor;
}

grpc::Status ParameterService::SaveCheckpoint(grpc::ServerContext* /*context*/,
                                              const v1::SaveCheckpointRequest* request,
                                              v1::SaveCheckpointResponse* response) {
  MutexLock one_at_a_time(&save_mutex_);
  const absl::StatusOr<Served> now = ServedRun(request->run_id());
  if (!now.ok()) return ToGrpcStatus(now.status());
  absl::StatusOr<Shard::SavedFile> saved;
  std::thread([&] {  // this one is gRPC's
    LowerThreadPriority();
    saved = now->shard->SaveCheckpoint(request->version(), request->directory());
  }).join();
  if (!saved.ok()) return ToGrpcStatus(saved.status());
  response->set_file(std::move(saved->file));
  response->set_bytes(saved->bytes);
  response->set_sha256(std::move(saved->sha256));
  return grpc::Status::OK;
}

grpc::Status ParameterService::ReleaseSnapshot(grpc::ServerContext* /*context*/,
                                               const v1::ReleaseSnapshotRequest* request,
                                               v1::ReleaseSnapshotResponse* /*response*/) {
  const absl::StatusOr<Served> now = ServedRun(request->run_id());
  if (!now.ok()) return ToGrpcStatus(now.status());
  now->shard->ReleaseSnapshot(request->version(), request->committed());
  return grpc::Status::OK;
}

grpc::Status ParameterService::GetShardStatus(grpc::ServerContext* /*context*/,
                                              const v1::GetShardStatusRequest* /*request*/, v1::ShardStatus* response) {
  const Served now = served();
  if (now.shard == nullptr) return ToGrpcStatus(NotYet());
  const Shard& shard = *now.shard;
  response->mutable_shard()->set_shard(shard.index());
  response->mutable_shard()->set_begin(shard.range().begin);
  response->mutable_shard()->set_end(shard.range().end);
  response->set_version(shard.version());
  response->set_waiting_for(shard.WaitingFor());
  response->set_gradient_bytes(static_cast<uint64_t>(now.metrics->gradient_bytes.Value()));
  response->set_weight_bytes(static_cast<uint64_t>(now.metrics->weight_bytes.Value()));
  return grpc::Status::OK;
}

}  // namespace millrace
