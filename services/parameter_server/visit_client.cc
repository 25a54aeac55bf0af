#include "services/parameter_server/visit_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/dataset_client.h"
#include "common/expected_visits.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "grpcpp/client_context.h"
#include "millrace/v1/data.grpc.pb.h"

namespace millrace {
namespace {

constexpr absl::Duration kAttemptTimeout = absl::Seconds(5);
constexpr int kAttemptsPerLogLine = 10;
// Of a part of an epoch, which the service must find through the permutation.
constexpr uint64_t kSamplesPerRequest = 1 << 19;

// Asking again, or another replica, would not help.
bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status) || absl::IsUnimplemented(status);
}

}  // namespace

std::vector<v1::ExpectedVisitsRequest> VisitRequests(const v1::JobPlan& plan, const v1::VisitCheck& check) {
  const uint64_t steps = check.end() - check.begin();
  const uint64_t samples = plan.dataset().train_count() + plan.dataset().validation_count();
  const bool whole = steps == plan.steps_per_epoch() && samples <= kExpectedVisitsMax;
  const uint64_t at_once = whole ? steps : std::max<uint64_t>(1, kSamplesPerRequest / plan.spec().batch_size());
  std::vector<v1::ExpectedVisitsRequest> requests;
  for (uint64_t step = 0; step < steps; step += at_once) {
    v1::ExpectedVisitsRequest& request = requests.emplace_back();
    *request.mutable_plan() = BatchPlanOf(plan);
    request.set_epoch(check.epoch());
    request.set_step(check.begin() % plan.steps_per_epoch() + step);
    request.set_steps(std::min(at_once, steps - step));
  }
  return requests;
}

VisitClient::VisitClient(std::vector<std::string> addresses, Answer answer,
                         std::shared_ptr<grpc::ChannelCredentials> credentials)
    : addresses_(std::move(addresses)),
      answer_(std::move(answer)),
      credentials_(std::move(credentials)),
      choice_({.replicas = addresses_.size()}),
      thread_([this] { Run(); }) {}

VisitClient::~VisitClient() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.SignalAll();
  }
  thread_.join();
}

void VisitClient::Ask(const v1::JobPlan& plan, const v1::VisitCheck& check) {
  Question question{check, VisitRequests(plan, check)};
  MutexLock lock(&mutex_);
  waiting_.push_back(std::move(question));
  if (waiting_.size() > kWaitingMax) {
    const v1::VisitCheck& oldest = waiting_.front().check;
    LogWarning("visits are not checked: the data service does not say what they should be",
               {{"begin", oldest.begin()}, {"end", oldest.end()}});
    waiting_.pop_front();
  }
  changed_.SignalAll();
}

void VisitClient::Run() {
  for (;;) {
    Question question;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      question = std::move(waiting_.front());
      waiting_.pop_front();
    }
    v1::VisitCheck check = question.check;
    absl::Status status;
    for (const v1::ExpectedVisitsRequest& request : question.requests) {
      const absl::StatusOr<v1::ExpectedVisits> expected = AskUntilAnswered(request);
      status = expected.status();
      if (!status.ok()) break;
      check.set_expected_samples(check.expected_samples() + expected->samples());
      check.set_expected_visits(check.expected_visits() + expected->visits());
    }
    if (status.ok()) {
      answer_(check);
    } else if (!absl::IsCancelled(status)) {
      LogWarning("visits are not checked: the data service refuses to say what they should be",
                 {{"begin", check.begin()}, {"end", check.end()}, {"reason", status}});
    }
  }
}

absl::StatusOr<v1::ExpectedVisits> VisitClient::AskUntilAnswered(const v1::ExpectedVisitsRequest& request) {
  for (int attempt = 0;; ++attempt) {
    const std::string& address = addresses_[choice_.current()];
    absl::StatusOr<v1::ExpectedVisits> expected = AskOnce(address, request);
    if (expected.ok() || IsRefusal(expected.status())) {
      choice_.Answered();
      return expected;
    }
    if (attempt % kAttemptsPerLogLine == 1) {
      LogInfo("waiting for the data service to say what visits there should be",
              {{"address", address}, {"epoch", request.epoch()}, {"reason", expected.status()}});
    }
    if (!Sleep(choice_.Lost(ReplicaChoice::Loss::kBroken, absl::Now()))) return absl::CancelledError("the end");
  }
}

absl::StatusOr<v1::ExpectedVisits> VisitClient::AskOnce(const std::string& address,
                                                        const v1::ExpectedVisitsRequest& request) {
  const auto stub = v1::DataService::NewStub(MakeChannel(address, credentials_));
  grpc::ClientContext context;
  SetDeadline(context, kAttemptTimeout);
  {
    MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("the end");
    call_ = &context;
  }
  v1::ExpectedVisits expected;
  const absl::Status status = FromGrpcStatus(stub->ExpectVisits(&context, request, &expected));
  MutexLock lock(&mutex_);
  call_ = nullptr;
  if (!status.ok()) return status;
  return expected;
}

bool VisitClient::Sleep(absl::Duration time) {
  const absl::Time until = absl::Now() + time;
  MutexLock lock(&mutex_);
  while (!stopping_ && absl::Now() < until) changed_.WaitWithTimeout(&mutex_, until - absl::Now());
  return !stopping_;
}

}  // namespace millrace
