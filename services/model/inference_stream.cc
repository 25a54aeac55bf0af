#include "services/model/inference_stream.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "services/model/rollout.h"

namespace millrace {

InferenceStream::InferenceStream(const OpenInferenceCatalog& catalog, InferenceEngine& engine, const Clock& clock,
                                 absl::Time deadline, std::function<void(InferenceStream*)> closed)
    : catalog_(catalog), engine_(engine), clock_(clock), deadline_(deadline), closed_(std::move(closed)) {}

void InferenceStream::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!end_) end_ = status;
  FinishIfDue();
}

void InferenceStream::OnReadDone(bool ok) {
  uint64_t turn = 0;
  {
    MutexLock lock(&mutex_);
    if (!ok && !end_) end_ = absl::OkStatus();  // the client has no more
    if (end_) return FinishIfDue();
    busy_ = true;
    turn = ++turn_;
  }
  if (const absl::Status fault = Ask(turn); !fault.ok()) Answer(turn, fault);
}

absl::Status InferenceStream::Ask(uint64_t turn) {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> version,
                            catalog_.Find(message_.model_name(), message_.model_version()));
  MILLRACE_ASSIGN_OR_RETURN(inference_, ToInference(version->info(), message_, clock_.Now(), deadline_));
  version = RouteRequest(std::move(version), inference_.request);
  const ModelInfo* info = &version->info();  // the engine holds the version until the answer
  const InferenceEngine::Ticket ticket = engine_.Infer(
      std::move(version), inference_.request, [this, turn, info](const absl::StatusOr<InferenceAnswer>& answer) {
        if (answer.ok()) FillResponse(*info, inference_, *answer, response_.mutable_infer_response());
        Answer(turn, answer.status());
      });
  bool cancelled = false;
  {
    // By now the answer may be written and the next request read, by another thread.
    MutexLock lock(&mutex_);
    if (answered_ >= turn) return absl::OkStatus();
    ticket_ = ticket;
    cancelled = cancelled_;
  }
  if (cancelled) engine_.Cancel(ticket);
  return absl::OkStatus();
}

void InferenceStream::Answer(uint64_t turn, const absl::Status& fault) {
  if (!fault.ok()) {
    response_.set_error_message(absl::StrCat(absl::StatusCodeToString(fault.code()), ": ", fault.message()));
    response_.mutable_infer_response()->set_id(message_.id());
  }
  MutexLock lock(&mutex_);
  answered_ = turn;
  ticket_ = 0;
  if (cancelled_) {
    busy_ = false;
    return FinishIfDue();
  }
  StartWrite(&response_);
}

void InferenceStream::OnWriteDone(bool ok) {
  response_.Clear();
  MutexLock lock(&mutex_);
  busy_ = false;
  if (!ok && !end_) end_ = absl::CancelledError("the client is gone");
  if (end_) return FinishIfDue();
  StartRead(&message_);
}

void InferenceStream::OnCancel() {
  InferenceEngine::Ticket ticket = 0;
  {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    if (!end_) end_ = absl::CancelledError("the client cancelled the stream");
    ticket = ticket_;
    FinishIfDue();
  }
  if (ticket != 0) engine_.Cancel(ticket);
}

void InferenceStream::FinishIfDue() {
  if (busy_ || finished_ || !end_) return;
  finished_ = true;
  Finish(ToGrpcStatus(*end_));
}

void InferenceStream::OnDone() {
  // All other reactions are over. The lock only makes that visible, also to the thread sanitizer.
  { MutexLock lock(&mutex_); }
  const auto closed = closed_;  // outlives the stream
  closed(this);
}

}  // namespace millrace
