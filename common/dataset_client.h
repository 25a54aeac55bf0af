// Where the replicas of the data service are, what their dataset is, and what a job asks of them. Batches:
// batch_client.h.
#pragma once

#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "millrace/v1/data.pb.h"

namespace grpc {
class ClientContext;
}

namespace millrace {

namespace v1 {
class JobPlan;
}

// "10.0.0.1:7100,10.0.0.2:7100", as a flag has it. INVALID_ARGUMENT if an address is empty or none, or is named twice,
// or there are more than kDataReplicasMax.
absl::StatusOr<std::vector<std::string>> ParseDataAddresses(std::string_view text);

// The service may be back, or reachable, the next time.
bool IsTransientDataError(const absl::Status& status);

// What is waited for if no replica answers: "the data service at ADDRESS (reason)", or of several "a data service (none
// of 3 answers: ADDRESS: reason; ...)". As many reasons as addresses.
std::string DescribeSilence(std::span<const std::string> addresses, std::span<const absl::Status> reasons);

// Asks all replicas at once what their dataset is, again and again until one answers: they may not have been started
// yet. Between attempts `wait` is told what is waited for, and waits for `time` (at most 2 s) or returns false to give
// up (CANCELLED). DEADLINE_EXCEEDED after `timeout`, which may be infinite, with the last reason; what a replica itself
// refuses (INVALID_ARGUMENT for too many validation samples, say) is returned at once, and FAILED_PRECONDITION if those
// that answer do not agree. `credentials` as MakeChannel takes them.
absl::StatusOr<v1::DatasetInfo> DescribeDataset(
    const std::vector<std::string>& addresses, const v1::DescribeDatasetRequest& request, absl::Duration timeout,
    absl::FunctionRef<bool(std::string_view waiting_for, absl::Duration time)> wait,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

// What the replicas that answered, at least one, all say. FAILED_PRECONDITION, naming two and what they say, if they
// differ in anything but the dataset's name. Pure.
absl::StatusOr<v1::DatasetInfo> AgreedDataset(std::span<const std::string> addresses,
                                              std::span<const absl::StatusOr<v1::DatasetInfo>> answers);

// Asks one replica, in the background, which dataset it has.
class IdentifyCall {
 public:
  IdentifyCall(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout);
  ~IdentifyCall();  // gives it up

  bool done() const;
  // Once; at most `timeout`.
  absl::StatusOr<v1::DatasetIdentity> Wait() { return result_.get(); }

 private:
  const std::unique_ptr<grpc::ClientContext> context_;
  std::future<absl::StatusOr<v1::DatasetIdentity>> result_;
};

// What a BatchClient needs to know of a job.
v1::BatchPlan BatchPlanOf(const v1::JobPlan& plan);

}  // namespace millrace
