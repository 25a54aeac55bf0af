// Answers v1.ParameterServer from the moment the server listens: UNAVAILABLE until there is a shard, then as
// ParameterService does. A shard is made from the job's plan, and for the plan its process must be reachable first.
//
// Threads: any.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/parameter.grpc.pb.h"
#include "services/parameter_server/parameter_service.h"

namespace millrace {

class LateParameterService final
    : public v1::ParameterServer::WithRawCallbackMethod_Exchange<
          v1::ParameterServer::WithRawCallbackMethod_FetchWeights<v1::ParameterServer::Service>> {
 public:
  // From now on calls go to `service`. Once.
  void Bind(std::unique_ptr<ParameterService> service);
  bool bound() const { return service() != nullptr; }

  // Ends all exchanges, so that the server can drain.
  void Close();

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Exchange(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchWeights(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request) override;
  grpc::Status SaveCheckpoint(grpc::ServerContext* context, const v1::SaveCheckpointRequest* request,
                              v1::SaveCheckpointResponse* response) override;
  grpc::Status ReleaseSnapshot(grpc::ServerContext* context, const v1::ReleaseSnapshotRequest* request,
                               v1::ReleaseSnapshotResponse* response) override;
  grpc::Status GetShardStatus(grpc::ServerContext* context, const v1::GetShardStatusRequest* request,
                              v1::ShardStatus* response) override;

 private:
  ParameterService* service() const;  // null until bound; stays

  mutable Mutex mutex_;
  std::unique_ptr<ParameterService> service_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
