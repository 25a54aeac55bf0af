#include "common/dataset_client.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/address.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/strings.h"
#include "google/protobuf/util/message_differencer.h"
#include "grpcpp/client_context.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

// One attempt at a unary call. The service may hold it until its dataset is loaded, and a caller that is to stop waits
// for it.
constexpr absl::Duration kAttemptTimeout = absl::Seconds(2);
constexpr size_t kFingerprintShown = 12;  // digits

absl::Status Explain(const grpc::Status& status, absl::Duration timeout) {
  if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) return FromGrpcStatus(status);
  return absl::DeadlineExceededError(
      absl::StrCat("no answer within ", absl::FormatDuration(absl::Trunc(timeout, absl::Milliseconds(1)))));
}

using Credentials = std::shared_ptr<grpc::ChannelCredentials>;

absl::StatusOr<v1::DatasetInfo> Ask(const std::string& address, const v1::DescribeDatasetRequest& request,
                                    absl::Duration timeout, const Credentials& credentials) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::DatasetInfo info;
  const grpc::Status status =
      v1::DataService::NewStub(MakeChannel(address, credentials))->DescribeDataset(&context, request, &info);
  if (!status.ok()) return Explain(status, timeout);
  return info;
}

std::vector<absl::StatusOr<v1::DatasetInfo>> AskAll(const std::vector<std::string>& addresses,
                                                    const v1::DescribeDatasetRequest& request, absl::Duration timeout,
                                                    const Credentials& credentials) {
  std::vector<std::future<absl::StatusOr<v1::DatasetInfo>>> asked;
  for (const std::string& address : addresses) {
    asked.push_back(std::async(std::launch::async, Ask, address, request, timeout, credentials));
  }
  std::vector<absl::StatusOr<v1::DatasetInfo>> answers;
  for (auto& answer : asked) answers.push_back(answer.get());
  return answers;
}

// "mnist (fingerprint 0123456789ab)"
std::string Identify(const v1::DatasetInfo& info) {
  return absl::StrCat(info.name(), " (fingerprint ", info.fingerprint().substr(0, kFingerprintShown), ")");
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseDataAddresses(std::string_view text) {
  std::vector<std::string> addresses = absl::StrSplit(ToAbsl(text), ',');
  if (addresses.size() > kDataReplicasMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " addresses are over the limit of ", kDataReplicasMax));
  }
  std::set<std::string> seen;
  for (const std::string& address : addresses) {
    if (address.empty()) return absl::InvalidArgumentError(absl::StrCat("'", ToAbsl(text), "' has an empty address"));
    if (absl::Status status = ParseAddress(address).status(); !status.ok()) return status;
    if (!seen.insert(address).second) return absl::InvalidArgumentError(absl::StrCat(address, " is named twice"));
  }
  return addresses;
}

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

std::string DescribeSilence(std::span<const std::string> addresses, std::span<const absl::Status> reasons) {
  if (addresses.size() == 1) return absl::StrCat("the data service at ", addresses[0], " (", reasons[0].message(), ")");
  std::string text = absl::StrCat("a data service (none of ", addresses.size(), " answers");
  for (size_t i = 0; i < addresses.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? ": " : "; ", addresses[i], ": ", reasons[i].message());
  }
  return text + ")";
}

absl::StatusOr<v1::DatasetInfo> DescribeDataset(const std::vector<std::string>& addresses,
                                                const v1::DescribeDatasetRequest& request, absl::Duration timeout,
                                                absl::FunctionRef<bool(std::string_view, absl::Duration)> wait,
                                                const Credentials& credentials) {
  const absl::Time deadline = absl::Now() + timeout;
  Backoff backoff;
  while (true) {
    const std::vector<absl::StatusOr<v1::DatasetInfo>> answers =
        AskAll(addresses, request, std::min(kAttemptTimeout, deadline - absl::Now()), credentials);
    std::vector<absl::Status> reasons;
    bool answered = false;
    for (size_t i = 0; i < addresses.size(); ++i) {
      const absl::Status& status = reasons.emplace_back(answers[i].status());
      answered |= status.ok();
      if (!IsTransientDataError(status)) {
        return absl::Status(status.code(), absl::StrCat("data service at ", addresses[i], ": ", status.message()));
      }
    }
    if (answered) return AgreedDataset(addresses, answers);
    const std::string what = DescribeSilence(addresses, reasons);
    const absl::Duration time = backoff.Next();
    if (absl::Now() + time >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("waited ", absl::FormatDuration(timeout), " for ", what));
    }
    if (!wait(what, time)) return absl::CancelledError(absl::StrCat("gave up waiting for ", what));
  }
}

absl::StatusOr<v1::DatasetInfo> AgreedDataset(std::span<const std::string> addresses,
                                              std::span<const absl::StatusOr<v1::DatasetInfo>> answers) {
  const auto first = std::ranges::find_if(answers, [](const auto& answer) { return answer.ok(); });
  const std::string& first_address = addresses[static_cast<size_t>(first - answers.begin())];
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!answers[i].ok()) continue;
    v1::DatasetInfo other = *answers[i];
    if (other.fingerprint() != (*first)->fingerprint()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the data services have different datasets: ", Identify(**first), " at ", first_address, ", ",
                       Identify(other), " at ", addresses[i]));
    }
    other.set_name((*first)->name());
    if (!google::protobuf::util::MessageDifferencer::Equals(other, **first)) {
      return absl::FailedPreconditionError(absl::StrCat("the data services at ", first_address, " and ", addresses[i],
                                                        " describe ", Identify(other),
                                                        " in different ways: are they of different versions?"));
    }
  }
  return **first;
}

IdentifyCall::IdentifyCall(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout)
    : context_(std::make_unique<grpc::ClientContext>()) {
  SetDeadline(*context_, timeout);
  result_ = std::async(std::launch::async, [this, channel, timeout]() -> absl::StatusOr<v1::DatasetIdentity> {
    v1::DatasetIdentity identity;
    const grpc::Status status = v1::DataService::NewStub(channel)->IdentifyDataset(context_.get(), {}, &identity);
    if (!status.ok()) return Explain(status, timeout);
    return identity;
  });
}

IdentifyCall::~IdentifyCall() {
  context_->TryCancel();
  if (result_.valid()) result_.wait();
}

bool IdentifyCall::done() const { return result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }

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
