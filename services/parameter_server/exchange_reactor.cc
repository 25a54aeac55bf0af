#include "services/parameter_server/exchange_reactor.h"

#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "services/parameter_server/parameter_service.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {
namespace {

// Acks that a peer has not read. Each stands for a whole push, so only a peer that never reads comes near.
constexpr size_t kPendingAcksMax = 1024;

}  // namespace

ExchangeReactor::ExchangeReactor(ParameterService* service, ShardMetrics* metrics)
    : service_(service), metrics_(metrics) {
  metrics_->exchanges.Increment();
  MutexLock lock(&read_mutex_);
  StartRead(&request_);
}

ExchangeReactor::~ExchangeReactor() { metrics_->exchanges.Decrement(); }

// --- Reading ---

void ExchangeReactor::OnReadDone(bool ok) {
  if (!ok) return End(absl::OkStatus());  // the peer has said all it had to say, or is gone
  MutexLock lock(&read_mutex_);
  const absl::Status status = HandleRequest();
  view_.Clear();
  if (!status.ok()) return End(status);
  StartRead(&request_);
}

absl::Status ExchangeReactor::HandleRequest() {
  MILLRACE_RETURN_IF_ERROR(view_.Reset(request_));
  request_.Clear();  // the view has the slices
  MILLRACE_ASSIGN_OR_RETURN(const ExchangeRequestView message, DecodeExchangeRequest(view_));
  if (const auto* open = std::get_if<v1::OpenExchange>(&message)) return Open(*open);
  if (const auto* chunk = std::get_if<GradientChunkView>(&message)) return Push(*chunk);
  return absl::InvalidArgumentError("an exchange request that is neither open nor gradient");
}

absl::Status ExchangeReactor::Open(const v1::OpenExchange& open) {
  if (shard_ != nullptr) return absl::InvalidArgumentError("the exchange is open already");
  MILLRACE_ASSIGN_OR_RETURN(shard_, service_->Register(this, open.run_id()));
  const WeightsVersion whole = shard_->weights();
  Offer({whole, whole.values.size()});
  return absl::OkStatus();
}

absl::Status ExchangeReactor::Push(const GradientChunkView& chunk) {
  if (shard_ == nullptr) return absl::InvalidArgumentError("the first request of an exchange must be open");
  MILLRACE_ASSIGN_OR_RETURN(const Shard::AddResult added, shard_->AddGradient(chunk));
  // The ack goes out before the chunk is applied: the peer's report and the optimizer then overlap.
  const absl::Status acknowledged = added.push_complete ? Acknowledge(chunk.header) : absl::OkStatus();
  if (added.chunk_complete) {
    view_.Clear();  // the receive buffers, for the length of the optimizer's work
    MILLRACE_RETURN_IF_ERROR(shard_->Apply());
  }
  return acknowledged;
}

absl::Status ExchangeReactor::Acknowledge(const GradientChunkHeader& push) {
  metrics_->pushes_acknowledged.Increment();
  v1::PushAck ack;
  ack.set_step(push.step);
  ack.set_slot_begin(push.slot_begin);
  ack.set_slot_end(push.slot_end);
  MutexLock lock(&mutex_);
  if (acks_.size() >= kPendingAcksMax) {
    return absl::ResourceExhaustedError(absl::StrCat("the peer left ", kPendingAcksMax, " acks unread"));
  }
  acks_.push_back(std::move(ack));
  WriteNext();
  return absl::OkStatus();
}

// --- Writing ---

void ExchangeReactor::Offer(const WeightsProgress& progress) {
  MutexLock lock(&mutex_);
  if (ending_ || !outbox_.Offer(progress)) return;
  WriteNext();
}

void ExchangeReactor::WriteNext() {
  if (writing_ || ending_) return;
  outbox_.Advance();
  if (!acks_.empty()) {
    v1::ExchangeResponse response;
    *response.mutable_ack() = std::move(acks_.front());
    acks_.pop_front();
    response_ = EncodeMessage(response);
  } else if (std::optional<WeightsOutbox::Piece> piece = outbox_.Next()) {
    metrics_->weight_bytes.Increment(static_cast<double>(piece->values.bytes.size()));
    response_ = EncodeWeights(piece->header, std::move(piece->values));
  } else {
    return;
  }
  writing_ = true;
  StartWrite(&response_);
}

void ExchangeReactor::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  response_.Clear();
  if (ending_) {
    Finish(final_status_);
  } else if (ok) {
    WriteNext();
  }
  // A write that failed means that the call is over: the read that is waiting will say so.
}

// --- Ending ---

void ExchangeReactor::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (ending_) return;
  ending_ = true;
  final_status_ = ToGrpcStatus(status);
  outbox_.Clear();
  acks_.clear();
  if (!writing_) Finish(final_status_);
}

void ExchangeReactor::OnCancel() { End(absl::CancelledError("the exchange was cancelled")); }

void ExchangeReactor::OnDone() {
  service_->Unregister(this);
  delete this;
}

}  // namespace millrace
