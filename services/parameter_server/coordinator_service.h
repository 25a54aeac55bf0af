// The gRPC side of the coordinator: implements v1.Coordinator by translating messages to calls.
//
// Threads: runs on gRPC's callback threads; no call blocks. Ownership: the coordinator must outlive the service, the
// service the server it is added to.
#pragma once

#include "grpcpp/grpcpp.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/parameter_server/coordinator.h"

namespace millrace {

class CoordinatorService final : public v1::Coordinator::CallbackService {
 public:
  explicit CoordinatorService(Coordinator* coordinator) : coordinator_(coordinator) {}

  grpc::ServerUnaryReactor* RegisterShard(grpc::CallbackServerContext* context,
                                          const v1::RegisterShardRequest* request,
                                          v1::RegisterShardResponse* response) override;
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Work(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetJobStatus(grpc::CallbackServerContext* context, const v1::GetJobStatusRequest* request,
                                         v1::JobStatus* response) override;

 private:
  Coordinator* const coordinator_;
};

}  // namespace millrace
