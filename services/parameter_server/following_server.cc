// The process of a shard that takes its plan from the coordinator.
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/parameter_server/parameter_server.h"

namespace millrace {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(2);
constexpr absl::Duration kWatchInterval = absl::Seconds(1);
constexpr int kAttemptsPerLogLine = 5;

}  // namespace

absl::Status FollowingServer::Start() {
  const auto stub = v1::Coordinator::NewStub(MakeChannel(options_.coordinator_address));
  v1::RegisterShardResponse registered;
  Backoff backoff;
  for (int attempt = 0;; ++attempt) {
    grpc::ClientContext context;
    SetDeadline(context, kCallDeadline);
    const absl::Status status = FromGrpcStatus(stub->RegisterShard(&context, Registration(), &registered));
    if (status.ok()) break;
    if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
    if (attempt % kAttemptsPerLogLine == 1) {
      LogInfo("waiting for the coordinator",
              {{"address", options_.coordinator_address}, {"reason", status.message()}});
    }
    if (!Sleep(backoff.Next())) return absl::CancelledError("shutting down");
  }
  MILLRACE_RETURN_IF_ERROR(host_.Serve(registered.plan(), registered.shard()));

  // A coordinator that starts anew resumes from a checkpoint; the weights here are of another run then.
  while (Sleep(kWatchInterval)) {
    grpc::ClientContext context;
    SetDeadline(context, kCallDeadline);
    v1::JobStatus status;
    if (!stub->GetJobStatus(&context, v1::GetJobStatusRequest(), &status).ok()) continue;
    if (status.has_plan() && status.plan().run_id() != registered.plan().run_id()) {
      return absl::AbortedError("the coordinator was restarted; start this shard again to take part in its new run");
    }
  }
  return absl::OkStatus();
}

std::string FollowingServer::StatusPage() {
  const std::string shard = host_.StatusLine();
  if (!shard.empty()) return shard + "\n";
  return absl::StrCat("waiting for the job's plan from the coordinator at ", options_.coordinator_address, "\n");
}

}  // namespace millrace
