#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/clock.h"
#include "common/grpc_status.h"
#include "common/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "services/model/inference_engine.h"
#include "services/model/inference_question.h"

namespace millrace {

// One call that streams requests to the engine and answers back: one request at a time is read, computed and answered,
// so that a client which does not read costs one answer of memory. A request's fault is its answer; the stream goes on.
//
// The protocol's part, of which each stream has an object of its own, used for one request at a time:
//   using Request = ..., Response = ...;
//   // `request`, and what the question borrows from the protocol, live until the answer. Times: the engine's clock.
//   absl::StatusOr<InferenceQuestion> Ask(const Request& request, absl::Time now, absl::Time deadline);
//   void Fill(const Request& request, const ModelInfo& info, const InferenceAnswer& answer, Response* response);
//   void FillFault(const Request& request, const absl::Status& fault, Response* response);
//
// Threads: gRPC's and the engine's. Nothing blocks.
template <typename Protocol>
class InferenceStream final : public grpc::ServerBidiReactor<typename Protocol::Request, typename Protocol::Response> {
 public:
  // `peer`: who asks. `deadline`: the call's, on the engine's clock. `closed`: as StreamSet says. The references must
  // outlive the stream.
  InferenceStream(Protocol protocol, InferenceEngine& engine, const Clock& clock, std::string peer, absl::Time deadline,
                  std::function<void(InferenceStream*)> closed)
      : engine_(engine),
        clock_(clock),
        peer_(std::move(peer)),
        deadline_(deadline),
        closed_(std::move(closed)),
        protocol_(std::move(protocol)) {}

  void Begin() { this->StartRead(&request_); }
  // Ends the call with `status` after the request that is being answered, if there is one. Repeats do nothing.
  void End(const absl::Status& status);

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Asks the engine, or says why not.
  absl::Status Ask(uint64_t turn);
  void Answer(uint64_t turn, const absl::Status& fault);
  void FinishIfDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  InferenceEngine& engine_;
  const Clock& clock_;
  const std::string peer_;
  const absl::Time deadline_;
  const std::function<void(InferenceStream*)> closed_;

  // Of the request being answered, and whoever answers it; else of the read in progress.
  Protocol protocol_;
  typename Protocol::Request request_;
  typename Protocol::Response response_;

  Mutex mutex_;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;      // requests read
  uint64_t answered_ ABSL_GUARDED_BY(mutex_) = 0;  // the last turn whose answer is known
  InferenceEngine::Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // from a read to the end of its answer's write
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;            // Finish was called: no operation may be started
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // what the call is to end with
};

template <typename Protocol>
void InferenceStream<Protocol>::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!end_) end_ = status;
  FinishIfDue();
}

template <typename Protocol>
void InferenceStream<Protocol>::OnReadDone(bool ok) {
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

template <typename Protocol>
absl::Status InferenceStream<Protocol>::Ask(uint64_t turn) {
  absl::StatusOr<InferenceQuestion> question = protocol_.Ask(request_, clock_.Now(), deadline_);
  if (!question.ok()) return question.status();
  question->request.peer = [this] { return peer_; };
  const ModelInfo* info = &question->version->info();  // the engine holds the version until the answer
  const InferenceEngine::Ticket ticket =
      engine_.Infer(std::move(question->version), question->request,
                    [this, turn, info](const absl::StatusOr<InferenceAnswer>& answer) {
                      if (answer.ok()) protocol_.Fill(request_, *info, *answer, &response_);
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

template <typename Protocol>
void InferenceStream<Protocol>::Answer(uint64_t turn, const absl::Status& fault) {
  if (!fault.ok()) protocol_.FillFault(request_, fault, &response_);
  MutexLock lock(&mutex_);
  answered_ = turn;
  ticket_ = 0;
  if (cancelled_) {
    busy_ = false;
    return FinishIfDue();
  }
  this->StartWrite(&response_);
}

template <typename Protocol>
void InferenceStream<Protocol>::OnWriteDone(bool ok) {
  response_.Clear();
  MutexLock lock(&mutex_);
  busy_ = false;
  if (!ok && !end_) end_ = absl::CancelledError("the client is gone");
  if (end_) return FinishIfDue();
  this->StartRead(&request_);
}

template <typename Protocol>
void InferenceStream<Protocol>::OnCancel() {
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

template <typename Protocol>
void InferenceStream<Protocol>::FinishIfDue() {
  if (busy_ || finished_ || !end_) return;
  finished_ = true;
  this->Finish(ToGrpcStatus(*end_));
}

template <typename Protocol>
void InferenceStream<Protocol>::OnDone() {
  // All other reactions are over. The lock only makes that visible, also to the thread sanitizer.
  { MutexLock lock(&mutex_); }
  const auto closed = closed_;  // outlives the stream
  closed(this);
}

}  // namespace millrace
