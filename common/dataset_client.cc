#include "common/dataset_client.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "grpcpp/client_context.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

// One attempt at a unary call. The service may hold it until its dataset is loaded, and a caller that is to stop waits
// for it.
constexpr absl::Duration kAttemptTimeout = absl::Seconds(2);

}  // namespace

bool IsTransientDataError(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return true;
    default:
      return false;
  }
}

absl::StatusOr<v1::DatasetInfo> DescribeDataset(const std::string& address, const v1::DescribeDatasetRequest& request,
                                                absl::Duration timeout,
                                                absl::FunctionRef<bool(std::string_view, absl::Duration)> wait) {
  const absl::Time deadline = absl::Now() + timeout;
  const auto stub = v1::DataService::NewStub(MakeChannel(address));
  Backoff backoff;
  while (true) {
    grpc::ClientContext context;
    SetDeadline(context, std::min(kAttemptTimeout, deadline - absl::Now()));
    v1::DatasetInfo info;
    const absl::Status status = FromGrpcStatus(stub->DescribeDataset(&context, request, &info));
    if (status.ok()) return info;
    if (!IsTransientDataError(status)) {
      return absl::Status(status.code(), absl::StrCat("data service at ", address, ": ", status.message()));
    }
    const std::string what = absl::StrCat("the data service at ", address, " (", status.message(), ")");
    const absl::Duration time = backoff.Next();
    if (absl::Now() + time >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("waited ", absl::FormatDuration(timeout), " for ", what));
    }
    if (!wait(what, time)) return absl::CancelledError(absl::StrCat("gave up waiting for ", what));
  }
}

v1::BatchPlan BatchPlanOf(const v1::JobPlan& plan) {
  v1::BatchPlan batches;
  batches.set_fingerprint(plan.dataset().fingerprint());
  batches.set_seed(plan.spec().seed());
  batches.set_validation_count(plan.spec().validation_count());
  batches.set_batch_size(plan.spec().batch_size());
  batches.set_slots(plan.spec().slots());
  batches.set_evaluation_batch_size(plan.spec().evaluation_batch_size());
  if (plan.spec().has_augmentation()) *batches.mutable_augmentation() = plan.spec().augmentation();
  return batches;
}

}  // namespace millrace
