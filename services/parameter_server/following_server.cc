// The process of a shard that takes its plan from the coordinator.
#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "grpcpp/grpcpp.h"
#include "services/parameter_server/parameter_server.h"

namespace millrace {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(2);

}  // namespace

absl::Status FollowingServer::Start() {
  return Follow([&](const v1::RegisterShardRequest& request) -> absl::StatusOr<v1::RegisterShardResponse> {
    if (stub_ == nullptr)
      stub_ = v1::Coordinator::NewStub(MakeChannel(options_.coordinator_address, context_.channel_credentials()));
    grpc::ClientContext context;
    SetDeadline(context, kCallDeadline);
    v1::RegisterShardResponse response;
    const grpc::Status status = stub_->RegisterShard(&context, request, &response);
    if (status.ok()) return response;
    stub_.reset();  // a channel that failed has a back-off of its own
    return FromGrpcStatus(status);
  });
}

absl::StatusOr<v1::JobStatus> FollowingServer::GetJobStatus() {
  grpc::ClientContext context;
  SetDeadline(context, kCallDeadline);
  v1::JobStatus job;
  const grpc::Status status = stub_->GetJobStatus(&context, {}, &job);
  if (!status.ok()) return FromGrpcStatus(status);
  return job;
}

std::string FollowingServer::StatusPage() {
  const std::string shard = host_.StatusLine();
  if (!shard.empty()) return shard + "\n";
  return absl::StrCat("waiting for the job's plan from the coordinator at ", options_.coordinator_address, "\n");
}

}  // namespace millrace
