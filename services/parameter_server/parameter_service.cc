#include "services/parameter_server/parameter_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "common/tensor/wire.h"
#include "services/parameter_server/exchange_reactor.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {
namespace {

absl::Status Closed() { return absl::UnavailableError("the parameter server is shutting down"); }

// Streams one version as WeightsChunks, one write at a time, then ends. Deletes itself. gRPC calls it from changing
// threads, one after the other.
class FetchReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchReactor(absl::StatusOr<WeightsVersion> weights, ShardMetrics* metrics) : metrics_(metrics) {
    MutexLock lock(&mutex_);
    if (weights.ok()) {
      weights_ = *std::move(weights);
      WriteNext();
    } else {
      Finish(ToGrpcStatus(weights.status()));
    }
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
    const std::span<const float> values =
        weights_.values.subspan(next_offset_, ChunkSize(weights_.values.size(), next_offset_));
    response_ = EncodeWeightsChunk({weights_.version, next_offset_}, values, weights_.owner);
    metrics_->weight_bytes.Increment(static_cast<double>(values.size_bytes()));
    next_offset_ += values.size();
    StartWrite(&response_);
  }

  ShardMetrics* const metrics_;
  Mutex mutex_;
  WeightsVersion weights_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_offset_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::ByteBuffer response_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

ParameterService::ParameterService(Shard* shard, Metrics* metrics)
    : shard_(shard), metrics_(std::make_unique<ShardMetrics>(metrics, shard->index())) {
  shard_->OnApplied([this](const WeightsVersion& weights) { Broadcast(weights); });
}

ParameterService::~ParameterService() = default;

absl::Status ParameterService::CheckRun(uint64_t run_id) const {
  if (run_id == shard_->plan().run_id()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("run ", run_id, " is not this one, ", shard_->plan().run_id(), ": join the job again"));
}

absl::Status ParameterService::Register(ExchangeReactor* exchange) {
  MutexLock lock(&mutex_);
  if (closed_) return Closed();
  exchanges_.insert(exchange);
  return absl::OkStatus();
}

void ParameterService::Unregister(ExchangeReactor* exchange) {
  MutexLock lock(&mutex_);
  exchanges_.erase(exchange);
}

void ParameterService::Broadcast(const WeightsVersion& weights) {
  MutexLock lock(&mutex_);
  for (ExchangeReactor* exchange : exchanges_) exchange->Offer(weights);
}

void ParameterService::CloseExchanges() {
  MutexLock lock(&mutex_);
  closed_ = true;
  for (ExchangeReactor* exchange : exchanges_) exchange->End(Closed());
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ParameterService::Exchange(
    grpc::CallbackServerContext* /*context*/) {
  return new ExchangeReactor(this, shard_, metrics_.get());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ParameterService::FetchWeights(grpc::CallbackServerContext* /*context*/,
                                                                           const grpc::ByteBuffer* request) {
  const auto find = [&]() -> absl::StatusOr<WeightsVersion> {
    MessageView view;
    v1::FetchWeightsRequest fetch;
    MILLRACE_RETURN_IF_ERROR(view.Reset(*request));
    MILLRACE_RETURN_IF_ERROR(DecodeMessage(view, &fetch));
    MILLRACE_RETURN_IF_ERROR(CheckRun(fetch.run_id()));
    return shard_->WeightsAt(fetch.version());
  };
  return new FetchReactor(find(), metrics_.get());
}

grpc::Status ParameterService::SaveCheckpoint(grpc::ServerContext* /*context*/,
                                              const v1::SaveCheckpointRequest* request,
                                              v1::SaveCheckpointResponse* response) {
  if (auto status = CheckRun(request->run_id()); !status.ok()) return ToGrpcStatus(status);
  absl::StatusOr<Shard::SavedFile> saved = shard_->SaveCheckpoint(request->version(), request->directory());
  if (!saved.ok()) return ToGrpcStatus(saved.status());
  response->set_file(std::move(saved->file));
  response->set_bytes(saved->bytes);
  response->set_sha256(std::move(saved->sha256));
  return grpc::Status::OK;
}

grpc::Status ParameterService::ReleaseSnapshot(grpc::ServerContext* /*context*/,
                                               const v1::ReleaseSnapshotRequest* request,
                                               v1::ReleaseSnapshotResponse* /*response*/) {
  if (auto status = CheckRun(request->run_id()); !status.ok()) return ToGrpcStatus(status);
  shard_->ReleaseSnapshot(request->version());
  return grpc::Status::OK;
}

grpc::Status ParameterService::GetShardStatus(grpc::ServerContext* /*context*/,
                                              const v1::GetShardStatusRequest* /*request*/, v1::ShardStatus* response) {
  response->mutable_shard()->set_shard(shard_->index());
  response->mutable_shard()->set_begin(shard_->range().begin);
  response->mutable_shard()->set_end(shard_->range().end);
  response->set_version(shard_->version());
  response->set_waiting_for(shard_->WaitingFor());
  response->set_gradient_bytes(static_cast<uint64_t>(metrics_->gradient_bytes.Value()));
  response->set_weight_bytes(static_cast<uint64_t>(metrics_->weight_bytes.Value()));
  return grpc::Status::OK;
}

}  // namespace millrace
