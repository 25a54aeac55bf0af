#include "services/worker/shard_exchange.h"

#include <array>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

// Of one attempt: nobody looks at the coordinator or a drain meanwhile.
constexpr absl::Duration kFetchDeadline = absl::Seconds(1);
constexpr double kFetchBytesPerSecond = 50e6;  // what a slow network manages, on top

constexpr char kMethod[] = "/millrace.v1.ParameterServer/Exchange";

// The shard has understood the request and will not take it at a second try either.
bool IsRefusal(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) ||
         absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
}

}  // namespace

struct ShardExchange::Event {
  enum Kind { kStart, kWrite, kRead, kFinish };
  ShardExchange* exchange;
  Kind kind;
};

// A stream. It is kept until its last event has come, since those point into it.
struct ShardExchange::Call {
  explicit Call(ShardExchange* exchange)
      : events{{{exchange, Event::kStart},
                {exchange, Event::kWrite},
                {exchange, Event::kRead},
                {exchange, Event::kFinish}}} {}

  void* Tag(Event::Kind kind) {
    ++outstanding;
    return &events[kind];
  }

  std::array<Event, 4> events;
  grpc::ClientContext context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  grpc::ByteBuffer message;  // being read
  MessageView view;
  grpc::Status status;  // once finished
  int outstanding = 0;  // events to come
  bool ready = false;   // the hello is written; pieces may follow
  bool writing = false;
  bool broken = false;  // no new operations but the end
  bool finished = false;
};

ShardExchange::ShardExchange(Options options, std::shared_ptr<grpc::Channel> channel, grpc::CompletionQueue* queue,
                             const WorkerMetrics* metrics)
    : options_(std::move(options)),
      stub_(channel),
      fetch_stub_(v1::ParameterServer::NewStub(channel)),
      queue_(queue),
      metrics_(*metrics),
      inbox_(options_.parameters, options_.wire) {}

ShardExchange::~ShardExchange() = default;

void ShardExchange::Handle(Event* event, bool ok) { event->exchange->OnEvent(event, ok); }

void ShardExchange::Tick(absl::Time now) {
  if (closing_ || !refusal_.ok()) return;
  if (call_ == nullptr) {
    if (now >= next_open_) Open(now);
    return;
  }
  const bool owed = push_.has_value() || inbox_.arriving() || !inbox_.version().has_value();
  if (!owed) {
    progress_ = now;
  } else if (now - progress_ > options_.stall_timeout && !call_->broken) {
    Break(absl::DeadlineExceededError(absl::StrCat("no progress for ", absl::FormatDuration(options_.stall_timeout))));
  }
}

void ShardExchange::Open(absl::Time now) {
  progress_ = now;
  push_offset_ = 0;
  inbox_.StreamOpened();
  call_ = std::make_unique<Call>(this);
  // The stream lives as long as the job, so it has no deadline: keepalive finds a vanished host, Tick a stalled shard.
  call_->stream = stub_.PrepareCall(&call_->context, kMethod, queue_);
  call_->stream->StartCall(call_->Tag(Event::kStart));
}

void ShardExchange::Close() {
  closing_ = true;
  if (call_ != nullptr && !call_->broken) Break(absl::CancelledError("closed"));
}

void ShardExchange::Break(absl::Status why) {
  last_error_ = std::move(why);
  call_->broken = true;
  call_->context.TryCancel();  // the outstanding read fails now, and that ends the stream
}

void ShardExchange::OnEvent(Event* event, bool ok) {
  Call& call = *call_;
  --call.outstanding;
  progress_ = absl::Now();
  switch (event->kind) {
    case Event::kStart:
      if (!ok) {
        call.broken = true;
        call.stream->Finish(&call.status, call.Tag(Event::kFinish));
        break;
      }
      call.stream->Read(&call.message, call.Tag(Event::kRead));
      if (!call.broken) {
        v1::ExchangeRequest open;
        *open.mutable_open() = options_.hello;
        call.writing = true;
        call.stream->Write(EncodeMessage(open), call.Tag(Event::kWrite));
      }
      break;
    case Event::kWrite:
      call.writing = false;
      call.ready = true;    // the first write is the hello
      if (ok) WriteNext();  // else the read fails too
      break;
    case Event::kRead:
      if (!ok) {
        call.broken = true;
        call.stream->Finish(&call.status, call.Tag(Event::kFinish));
        break;
      }
      if (!call.broken) OnMessage(call.message);
      call.stream->Read(&call.message, call.Tag(Event::kRead));
      break;
    case Event::kFinish:
      call.finished = true;
      break;
  }
  if (call.finished && call.outstanding == 0) {
    const grpc::Status status = call.status;
    call_.reset();
    OnEnd(status);
  }
}

void ShardExchange::OnEnd(const grpc::Status& status) {
  if (closing_) return;
  absl::Status error = FromGrpcStatus(status);
  // After Break the stream's own status says only that it was cancelled.
  if (absl::IsCancelled(error) && !last_error_.ok()) error = last_error_;
  if (error.ok()) error = absl::UnavailableError("the shard ended the exchange");
  if (IsRefusal(error)) {
    // FAILED_PRECONDITION: the shard's run or state is not the one we were told of. The coordinator knows better now.
    const absl::StatusCode code = absl::IsFailedPrecondition(error) ? absl::StatusCode::kUnavailable : error.code();
    refusal_ = absl::Status(code, absl::StrCat("shard ", options_.shard.shard(), ": ", error.message()));
    return;
  }
  last_error_ = error;
  next_open_ = absl::Now() + backoff_.Next();
  metrics_.exchange_breaks.Increment();
  LogWarning("exchange with a shard was lost; opening it again",
             {{"shard", options_.shard.shard()}, {"address", options_.shard.address()}, {"error", error}});
}

void ShardExchange::OnMessage(const grpc::ByteBuffer& message) {
  absl::Status status = call_->view.Reset(message);
  if (status.ok()) {
    const absl::StatusOr<ExchangeResponseView> response = DecodeExchangeResponse(call_->view);
    status = response.status();
    if (status.ok()) {
      if (const auto* weights = std::get_if<WeightsChunkView>(&*response)) {
        metrics_.received_bytes.Increment(static_cast<double>(weights->values.size()));
        status = inbox_.Receive(*weights);
      }
      if (const auto* ack = std::get_if<v1::PushAck>(&*response)) Acknowledge(*ack);
    }
  }
  call_->view.Clear();  // received slices pin whole receive buffers
  if (status.ok()) {
    backoff_.Reset();
    last_error_ = absl::OkStatus();
  } else {
    // Not a refusal: a fresh stream starts from a clean state.
    Break(absl::InternalError(absl::StrCat("the shard sent what it should not: ", status.message())));
  }
}

absl::Status ShardExchange::Fetch(uint64_t version) {
  grpc::ClientContext context;
  SetDeadline(context, kFetchDeadline +
                           absl::Seconds(static_cast<double>(options_.parameters.size_bytes()) / kFetchBytesPerSecond));
  v1::FetchWeightsRequest request;
  request.set_run_id(options_.hello.run_id());
  request.set_version(version);
  request.set_format(options_.wire);
  const auto reader = fetch_stub_->FetchWeights(&context, request);
  inbox_.BeginFetch();
  v1::WeightsChunk chunk;
  absl::Status received;
  while (received.ok() && reader->Read(&chunk)) {
    const ByteRope::Piece values = std::as_bytes(std::span(chunk.values()));
    metrics_.received_bytes.Increment(static_cast<double>(values.size()));
    if (chunk.version() != version) {
      received = absl::InvalidArgumentError(absl::StrCat("version ", chunk.version(), " instead of ", version));
      break;
    }
    received = inbox_.ReceiveFetched(chunk.offset(), ByteRope({&values, 1}, 0, values.size()));
  }
  if (!received.ok()) context.TryCancel();
  const absl::Status finished = FromGrpcStatus(reader->Finish());
  if (received.ok()) MILLRACE_RETURN_IF_ERROR(finished);
  if (received.ok()) received = inbox_.Fetched(version);
  if (received.ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("shard ", options_.shard.shard(), ": ", received.message()));
}

void ShardExchange::Acknowledge(const v1::PushAck& ack) {
  const bool ours = push_.has_value() && ack.step() == push_->step && ack.slot_begin() == push_->slots.begin &&
                    ack.slot_end() == push_->slots.end;
  if (ours) push_.reset();  // acks of a push that was abandoned mean nothing any more
}

void ShardExchange::StartPush(const GradientPush& push) {
  push_ = push;
  push_offset_ = 0;
  progress_ = absl::Now();
  WriteNext();
}

void ShardExchange::WriteNext() {
  if (!push_.has_value() || call_ == nullptr || !call_->ready || call_->broken || call_->writing) return;
  const uint64_t range = options_.parameters.size();
  if (push_offset_ == range) return;
  const uint64_t count = ChunkSize(range, push_offset_);
  const std::span<const float> values = push_->gradient->span().subspan(options_.shard.begin() + push_offset_, count);
  const GradientChunkHeader header{.step = push_->step,
                                   .slot_begin = push_->slots.begin,
                                   .slot_end = push_->slots.end,
                                   .samples = push_->samples,
                                   .offset = push_offset_,
                                   .weights_version = push_->weights_version};
  push_offset_ += count;
  WireValues wire = ToWire(options_.wire, values, push_->gradient);
  metrics_.pushed_bytes.Increment(static_cast<double>(wire.bytes.size()));
  call_->writing = true;
  call_->stream->Write(EncodeGradient(header, std::move(wire)), call_->Tag(Event::kWrite));
}

std::string ShardExchange::Describe() const {
  std::string text = absl::StrCat("shard ", options_.shard.shard(), " at ", options_.shard.address());
  if (!last_error_.ok()) absl::StrAppend(&text, " (lost: ", last_error_.message(), ")");
  return text;
}

}  // namespace millrace
