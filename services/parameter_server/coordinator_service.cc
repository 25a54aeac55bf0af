#include "services/parameter_server/coordinator_service.h"

#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/mutex.h"

namespace millrace {
namespace {

// A worker is sent a welcome, a handful of leases and an end; one that leaves this many messages unread never reads.
constexpr size_t kOutgoingMax = 64;

// One worker's stream. Deletes itself when gRPC is done with it; the coordinator has let go of it by then.
class WorkReactor final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>,
                          public WorkerConnection {
 public:
  WorkReactor(Coordinator* coordinator, grpc::CallbackServerContext* context)
      : coordinator_(coordinator), context_(context) {
    StartRead(&request_);
  }

  void Send(const v1::CoordinatorMessage& message) override {
    MutexLock lock(&mutex_);
    if (closing_.has_value()) return;
    if (outgoing_.size() >= kOutgoingMax) {
      LogWarning("a worker does not read what it is sent, its stream is ended", {{"unread_messages", kOutgoingMax}});
      closing_ = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many messages left unread");
      context_->TryCancel();  // or the write in progress might wait forever
      return;
    }
    outgoing_.push_back(message);
    if (outgoing_.size() == 1) StartWrite(&outgoing_.front());
  }

  void Close(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    if (closing_.has_value()) return;
    closing_ = ToGrpcStatus(status);
    FinishIfIdle();
  }

  // gRPC calls these one at a time per kind, so worker_ needs no lock.
  void OnReadDone(bool ok) override {
    if (!ok) return Close(absl::OkStatus());  // the worker has closed its side, or is gone
    if (const absl::Status status = Handle(); !status.ok()) return Close(status);
    MutexLock lock(&mutex_);
    if (!finished_) StartRead(&request_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    outgoing_.pop_front();
    if (!ok) outgoing_.clear();
    if (!ok && !closing_.has_value()) closing_ = grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream broke");
    if (!outgoing_.empty()) {
      StartWrite(&outgoing_.front());
    } else {
      FinishIfIdle();
    }
  }

  void OnDone() override {
    if (worker_.has_value()) coordinator_->Detach(*worker_);
    delete this;
  }

 private:
  absl::Status Handle() {
    if (worker_.has_value()) return coordinator_->Receive(*worker_, request_);
    if (!request_.has_hello()) return absl::InvalidArgumentError("the first message must be hello");
    const absl::StatusOr<WorkerId> worker = coordinator_->Attach(request_.hello(), this);
    if (!worker.ok()) return worker.status();
    worker_ = *worker;
    return absl::OkStatus();
  }

  void FinishIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!closing_.has_value() || finished_ || !outgoing_.empty()) return;
    finished_ = true;
    Finish(*closing_);
  }

  Coordinator* const coordinator_;
  grpc::CallbackServerContext* const context_;  // valid until OnDone
  std::optional<WorkerId> worker_;
  v1::WorkerMessage request_;

  Mutex mutex_;
  std::deque<v1::CoordinatorMessage> outgoing_ ABSL_GUARDED_BY(mutex_);  // the first one is being written
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* CoordinatorService::Work(
    grpc::CallbackServerContext* context) {
  return new WorkReactor(coordinator_, context);
}

grpc::ServerUnaryReactor* CoordinatorService::RegisterShard(grpc::CallbackServerContext* context,
                                                            const v1::RegisterShardRequest* request,
                                                            v1::RegisterShardResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<v1::RegisterShardResponse> result = coordinator_->RegisterShard(*request);
  if (result.ok()) *response = *std::move(result);
  reactor->Finish(ToGrpcStatus(result.status()));
  return reactor;
}

grpc::ServerUnaryReactor* CoordinatorService::GetJobStatus(grpc::CallbackServerContext* context,
                                                           const v1::GetJobStatusRequest* /*request*/,
                                                           v1::JobStatus* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  *response = coordinator_->GetStatus();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace millrace
