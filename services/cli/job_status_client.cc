#include "services/cli/job_status_client.h"

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/grpc_channel.h"
#include "services/cli/output_directory.h"

namespace millrace {
namespace {

constexpr absl::Duration kStatusTimeout = absl::Milliseconds(500);

}  // namespace

std::optional<v1::JobStatus> JobStatusClient::Ask() {
  if (coordinator_ == nullptr) {
    const absl::StatusOr<ClusterRecord> record = ReadClusterRecord(out_);
    if (!record.ok() || record->coordinator.empty()) return std::nullopt;
    coordinator_address_ = record->coordinator;
    coordinator_ = v1::Coordinator::NewStub(MakeChannel(coordinator_address_));
  }
  grpc::ClientContext context;
  SetDeadline(context, kStatusTimeout);
  v1::JobStatus status;
  if (!coordinator_->GetJobStatus(&context, {}, &status).ok()) {
    coordinator_.reset();  // a channel that failed has a back-off of its own
    return std::nullopt;
  }
  return status;
}

}  // namespace millrace
