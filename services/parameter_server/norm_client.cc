#include "services/parameter_server/norm_client.h"

#include <optional>
#include <span>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/mutex.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/parameter.grpc.pb.h"

namespace millrace {
namespace {

struct Request {
  uint64_t step;
  SquaredNorm part;
  NormExchange::Done done;
};

template <typename Message>
void Encode(const SquaredNorm& norm, Message& message) {
  message.mutable_limbs()->Assign(norm.sum.limbs().begin(), norm.sum.limbs().end());
  message.set_not_finite(!norm.finite);
}

template <typename Message>
absl::StatusOr<SquaredNorm> Decode(const Message& message) {
  if (message.limbs_size() != static_cast<int>(ExactSum::kLimbs)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a norm of ", message.limbs_size(), " limbs instead of ", ExactSum::kLimbs));
  }
  const std::span<const uint64_t, ExactSum::kLimbs> limbs(message.limbs().data(), ExactSum::kLimbs);
  return SquaredNorm{.sum = ExactSum(limbs), .finite = !message.not_finite()};
}

}  // namespace

v1::NormPart EncodeNormPart(uint64_t run_id, uint32_t shard, uint64_t step, const SquaredNorm& norm) {
  v1::NormPart part;
  part.set_run_id(run_id);
  part.set_shard(shard);
  part.set_step(step);
  Encode(norm, part);
  return part;
}

v1::NormTotal EncodeNormTotal(const SquaredNorm& norm) {
  v1::NormTotal total;
  Encode(norm, total);
  return total;
}

absl::StatusOr<SquaredNorm> DecodeNorm(const v1::NormPart& part) { return Decode(part); }
absl::StatusOr<SquaredNorm> DecodeNorm(const v1::NormTotal& total) { return Decode(total); }

class NormClient::State {
 public:
  explicit State(Options options)
      : options_(std::move(options)),
        stub_(v1::ParameterServer::NewStub(MakeChannel(options_.address, options_.credentials))) {}

  void Begin(Request request) {
    MutexLock lock(&mutex_);
    request_ = std::move(request);
    last_error_ = absl::OkStatus();
    changed_.SignalAll();
  }

  void Cancel() {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.SignalAll();
  }

  // Until it is cancelled.
  void Run() {
    Backoff backoff;
    while (std::optional<Request> request = Next()) {
      const absl::StatusOr<SquaredNorm> total = Ask(*request);
      if (!Finished(total.status(), backoff)) continue;
      request->done(*total);
    }
  }

  std::string WaitingFor() const {
    MutexLock lock(&mutex_);
    if (!request_.has_value()) return "";
    return absl::StrCat("the norms of the other shards, by way of shard 0 at ", options_.address,
                        last_error_.ok() ? "" : absl::StrCat(": ", last_error_.message()));
  }

 private:
  std::optional<Request> Next() {
    MutexLock lock(&mutex_);
    while (!request_.has_value() && !cancelled_) changed_.Wait(&mutex_);
    return cancelled_ ? std::nullopt : request_;
  }

  absl::StatusOr<SquaredNorm> Ask(const Request& request) {
    grpc::ClientContext context;
    SetDeadline(context, options_.call_timeout);
    {
      MutexLock lock(&mutex_);
      if (cancelled_) return absl::CancelledError("cancelled");
      call_ = &context;
    }
    v1::NormTotal total;
    const grpc::Status status =
        stub_->SumNorm(&context, EncodeNormPart(options_.run_id, options_.shard, request.step, request.part), &total);
    {
      MutexLock lock(&mutex_);
      call_ = nullptr;
    }
    if (!status.ok()) return FromGrpcStatus(status);
    return DecodeNorm(total);
  }

  // After a failure waits for a moment.
  bool Finished(const absl::Status& status, Backoff& backoff) {
    MutexLock lock(&mutex_);
    if (cancelled_) return false;
    last_error_ = status;
    if (!status.ok()) {
      changed_.WaitWithTimeout(&mutex_, backoff.Next());
      return false;
    }
    request_.reset();
    backoff.Reset();
    return true;
  }

  const Options options_;
  const std::unique_ptr<v1::ParameterServer::Stub> stub_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Request> request_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // in progress
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);              // of the request
};

NormClient::NormClient(Options options)
    : state_(std::make_shared<State>(std::move(options))), thread_([state = state_] { state->Run(); }) {}

NormClient::~NormClient() {
  Cancel();
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void NormClient::Sum(uint64_t step, const SquaredNorm& part, Done done) {
  state_->Begin({step, part, std::move(done)});
}

void NormClient::Cancel() { state_->Cancel(); }

std::string NormClient::WaitingFor() const { return state_->WaitingFor(); }

}  // namespace millrace
