// The process of a shard that takes its plan from the coordinator.
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/parameter_server/parameter_server.h"

namespace millrace {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(2);

}  // namespace

absl::Status FollowingServer::Start() {
  std::unique_ptr<v1::Coordinator::Stub> stub;
  return Follow([&](const v1::RegisterShardRequest& request) -> absl::StatusOr<v1::RegisterShardResponse> {
    if (stub == nullptr) stub = v1::Coordinator::NewStub(MakeChannel(options_.coordinator_address));
    grpc::ClientContext context;
    SetDeadline(context, kCallDeadline);
    v1::RegisterShardResponse response;
    const grpc::Status status = stub->RegisterShard(&context, request, &response);
    if (status.ok()) return response;
    stub.reset();  // a channel that failed has a back-off of its own
    return FromGrpcStatus(status);
  });
}

std::string FollowingServer::StatusPage() {
  const std::string shard = host_.StatusLine();
  if (!shard.empty()) return shard + "\n";
  return absl::StrCat("waiting for the job's plan from the coordinator at ", options_.coordinator_address, "\n");
}

}  // namespace millrace
