#include "services/worker/coordinator_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(200);
constexpr absl::Duration kPoliteEnd = absl::Seconds(2);

}  // namespace

CoordinatorClient::CoordinatorClient(Options options)
    : options_(std::move(options)),
      stub_(v1::Coordinator::NewStub(MakeChannel(options_.address, options_.credentials))) {}

absl::StatusOr<std::unique_ptr<CoordinatorClient>> CoordinatorClient::Connect(Options options, WaitCallback wait) {
  auto client = std::unique_ptr<CoordinatorClient>(new CoordinatorClient(std::move(options)));
  // Lives as long as the job: keepalive finds a vanished coordinator, and `wait` bounds the welcome.
  client->stream_ = client->stub_->Work(&client->context_);
  v1::WorkerMessage hello;
  *hello.mutable_hello() = client->options_.hello;
  client->Send(hello);
  client->reader_ = std::thread(&CoordinatorClient::ReadUntilEnd, client.get());
  MILLRACE_RETURN_IF_ERROR(client->AwaitWelcome(wait));
  client->heart_ = std::thread(&CoordinatorClient::BeatUntilEnd, client.get());
  return client;
}

absl::Status CoordinatorClient::AwaitWelcome(WaitCallback wait) {
  const std::string what = absl::StrCat("the coordinator at ", options_.address);
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!welcomed_ && !end_.has_value()) changed_.WaitWithTimeout(&mutex_, kPoll);
      if (welcomed_) return absl::OkStatus();
      if (end_.has_value()) return *end_;
    }
    MILLRACE_RETURN_IF_ERROR(wait(what));
  }
}

CoordinatorClient::~CoordinatorClient() {
  {
    MutexLock lock(&mutex_);
    closing_ = true;
    changed_.SignalAll();
  }
  if (heart_.joinable()) heart_.join();
  {
    MutexLock lock(&write_mutex_);
    stream_->WritesDone();
  }
  {
    const absl::Time deadline = absl::Now() + kPoliteEnd;
    MutexLock lock(&mutex_);
    const bool polite = welcomed_;  // a stream without a welcome has nothing to bring to its end
    while (polite && !end_.has_value() && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
  }
  context_.TryCancel();
  if (reader_.joinable()) reader_.join();
}

void CoordinatorClient::ReadUntilEnd() {
  v1::CoordinatorMessage message;
  while (stream_->Read(&message)) {
    MutexLock lock(&mutex_);
    switch (message.message_case()) {
      case v1::CoordinatorMessage::kWelcome:
        if (!welcomed_) welcome_ = std::move(*message.mutable_welcome());
        welcomed_ = true;
        break;
      case v1::CoordinatorMessage::kLease:
        events_.push_back(std::move(*message.mutable_lease()));
        break;
      case v1::CoordinatorMessage::kFinish:
        events_.push_back(std::move(*message.mutable_finish()));
        break;
      case v1::CoordinatorMessage::MESSAGE_NOT_SET:
        break;  // of a later protocol
    }
    if (events_.size() > kMaxQueued) context_.TryCancel();
    changed_.SignalAll();
  }
  absl::Status status;
  {
    MutexLock lock(&write_mutex_);  // a write that is stuck fails now
    status = FromGrpcStatus(stream_->Finish());
  }
  if (status.ok()) status = absl::UnavailableError("the coordinator ended the connection");
  MutexLock lock(&mutex_);
  end_ = std::move(status);
  changed_.SignalAll();
}

void CoordinatorClient::BeatUntilEnd() {
  // Far below any time after which the coordinator might take a worker for lost, whatever it asks for.
  const absl::Duration interval = absl::Milliseconds(std::clamp<uint32_t>(welcome_.heartbeat_interval_ms(), 50, 10000));
  while (true) {
    const absl::Time next = absl::Now() + interval;
    {
      MutexLock lock(&mutex_);
      while (!closing_ && !end_.has_value() && absl::Now() < next) {
        changed_.WaitWithTimeout(&mutex_, next - absl::Now());
      }
      if (closing_ || end_.has_value()) return;
    }
    v1::WorkerMessage beat;
    beat.mutable_heartbeat()->set_waiting_for(options_.waiting_for());
    Send(beat);
  }
}

void CoordinatorClient::Send(const v1::WorkerMessage& message) {
  MutexLock lock(&write_mutex_);
  stream_->Write(message);  // a failure means that the stream has ended, which the reader reports
}

absl::StatusOr<std::optional<LeaseLink::Event>> CoordinatorClient::Next(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (events_.empty() && !end_.has_value() && absl::Now() < deadline) {
    changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
  }
  if (!events_.empty()) {
    std::optional<Event> event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  if (end_.has_value()) {
    // Its name belongs to another process now, or it was expelled: coming back would only do harm.
    if (absl::IsAborted(*end_) || absl::IsInvalidArgument(*end_)) {
      return absl::AbortedError(
          absl::StrCat("the coordinator at ", options_.address, " sent this worker away: ", end_->message()));
    }
    return absl::UnavailableError(
        absl::StrCat("the connection to the coordinator at ", options_.address, " was lost: ", end_->message()));
  }
  return std::optional<Event>();
}

void CoordinatorClient::Report(const v1::Report& report) {
  v1::WorkerMessage message;
  *message.mutable_report() = report;
  Send(message);
}

void CoordinatorClient::Decline(uint64_t lease_id, std::string_view reason, bool weights_gone) {
  v1::WorkerMessage message;
  message.mutable_decline()->set_lease_id(lease_id);
  message.mutable_decline()->set_reason(reason.data(), reason.size());
  message.mutable_decline()->set_weights_gone(weights_gone);
  Send(message);
}

void CoordinatorClient::Leave() {
  v1::WorkerMessage message;
  message.mutable_leave();
  Send(message);
}

}  // namespace millrace
