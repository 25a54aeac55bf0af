#include "services/parameter_server/late_parameter_service.h"

#include <utility>

namespace millrace {
namespace {

grpc::Status NotYet() {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the shard is starting: it waits for the job's plan");
}

class RefusedExchange final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  RefusedExchange() { Finish(NotYet()); }
  void OnDone() override { delete this; }
};

class RefusedFetch final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  RefusedFetch() { Finish(NotYet()); }
  void OnDone() override { delete this; }
};

}  // namespace

void LateParameterService::Bind(std::unique_ptr<ParameterService> service) {
  MutexLock lock(&mutex_);
  service_ = std::move(service);
}

ParameterService* LateParameterService::service() const {
  MutexLock lock(&mutex_);
  return service_.get();
}

void LateParameterService::Close() {
  if (ParameterService* bound = service()) bound->CloseExchanges();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* LateParameterService::Exchange(
    grpc::CallbackServerContext* context) {
  if (ParameterService* bound = service()) return bound->Exchange(context);
  return new RefusedExchange;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* LateParameterService::FetchWeights(grpc::CallbackServerContext* context,
                                                                               const grpc::ByteBuffer* request) {
  if (ParameterService* bound = service()) return bound->FetchWeights(context, request);
  return new RefusedFetch;
}

grpc::Status LateParameterService::SaveCheckpoint(grpc::ServerContext* context,
                                                  const v1::SaveCheckpointRequest* request,
                                                  v1::SaveCheckpointResponse* response) {
  if (ParameterService* bound = service()) return bound->SaveCheckpoint(context, request, response);
  return NotYet();
}

grpc::Status LateParameterService::ReleaseSnapshot(grpc::ServerContext* context,
                                                   const v1::ReleaseSnapshotRequest* request,
                                                   v1::ReleaseSnapshotResponse* response) {
  if (ParameterService* bound = service()) return bound->ReleaseSnapshot(context, request, response);
  return NotYet();
}

grpc::Status LateParameterService::GetShardStatus(grpc::ServerContext* context,
                                                  const v1::GetShardStatusRequest* request,
                                                  v1::ShardStatus* response) {
  if (ParameterService* bound = service()) return bound->GetShardStatus(context, request, response);
  return NotYet();
}

}  // namespace millrace
