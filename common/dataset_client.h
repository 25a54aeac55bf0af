// What a data service's dataset is, and what a job asks of it. Batches: batch_client.h.
#pragma once

#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "millrace/v1/data.pb.h"

namespace millrace {

namespace v1 {
class JobPlan;
}

// The service may be back, or reachable, the next time.
bool IsTransientDataError(const absl::Status& status);

// Asks the data service at `address` what its dataset is, again and again until it answers: it may not have been
// started yet. Between attempts `wait` is told what is waited for, and waits for `time` (at most 2 s) or returns false
// to give up (CANCELLED). DEADLINE_EXCEEDED after `timeout`, which may be infinite, with the last reason; what the
// service itself refuses (INVALID_ARGUMENT for too many validation samples, say) is returned at once.
absl::StatusOr<v1::DatasetInfo> DescribeDataset(
    const std::string& address, const v1::DescribeDatasetRequest& request, absl::Duration timeout,
    absl::FunctionRef<bool(std::string_view waiting_for, absl::Duration time)> wait);

// What a BatchClient needs to know of a job.
v1::BatchPlan BatchPlanOf(const v1::JobPlan& plan);

}  // namespace millrace
