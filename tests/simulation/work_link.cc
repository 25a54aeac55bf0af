#include "tests/simulation/work_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/tensor/slot_tree.h"

namespace millrace::simulation {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(200);
// As in coordinator_service.cc: more than this unread, and the stream is ended.
constexpr uint32_t kUnreadMax = 64;
constexpr size_t kLeasesMax = 2;

}  // namespace

// --- The coordinator's end ---

CoordinatorPeer::Connection::Connection(CoordinatorPeer* peer, uint32_t slots, std::shared_ptr<Stream> stream)
    : peer_(*peer), slots_(slots), stream_(std::move(stream)) {}

void CoordinatorPeer::Connection::Send(const v1::CoordinatorMessage& message) {
  if (!peer_.process->alive()) return;
  World& world = peer_.process->world();
  world.Trace([&] { return absl::StrCat("coordinator sends ", message.ShortDebugString().substr(0, 150)); });
  if (message.has_lease()) {
    const v1::Lease& lease = message.lease();
    held_.insert(lease.id());
    world.Expect(held_.size() <= kLeasesMax, "a worker was granted more leases than it may hold");
    world.Expect(lease.kind() != v1::Lease::KIND_TRAIN || IsSlotNode({lease.begin(), lease.end()}, slots_),
                 "a lease is no node of the slot tree");
  }
  world.Expect(++unread_ <= kUnreadMax, "too many messages to a worker are on their way");
  stream_->ToClient([this, deliver = deliver, message, process = peer_.process] {
    if (process->alive()) --unread_;
    deliver(message);
  });
}

void CoordinatorPeer::Connection::Close(const absl::Status& status) {
  if (peer_.process->alive()) stream_->EndByServer(status);
}

void CoordinatorPeer::Connection::Receive(const v1::WorkerMessage& message) {
  if (peer_.coordinator == nullptr) return Close(absl::UnavailableError("the coordinator starts"));
  World& world = peer_.process->world();
  if (message.has_hello() || message.has_report()) peer_.last_progress = world.Now();
  world.Trace([&] { return absl::StrCat("coordinator hears ", message.ShortDebugString().substr(0, 150)); });
  absl::Status status;
  if (worker_.has_value()) {
    if (message.has_report()) held_.erase(message.report().lease_id());
    if (message.has_decline()) held_.erase(message.decline().lease_id());
    status = peer_.coordinator->Receive(*worker_, message);
  } else {
    const absl::StatusOr<WorkerId> worker = peer_.coordinator->Attach(message.hello(), this);
    status = worker.status();
    if (worker.ok()) worker_ = *worker;
  }
  if (!status.ok()) Close(status);
}

void CoordinatorPeer::Connection::Ended() {
  if (worker_.has_value() && peer_.coordinator != nullptr) peer_.coordinator->Detach(*worker_);
}

// --- The worker's end ---

WorkLink::~WorkLink() {
  *beating_ = false;
  if (stream_ != nullptr && process_.alive()) stream_->EndByClient();
}

absl::Status WorkLink::Connect(const v1::Hello& hello, WaitCallback wait) {
  if (peer_ == nullptr || !peer_->process->alive()) {
    process_.Sleep(network_.Delay());
    return absl::UnavailableError("no coordinator listens");
  }
  stream_ = network_.Connect(process_.shared_from_this(), peer_->process);
  auto connection = std::make_shared<CoordinatorPeer::Connection>(peer_, peer_->slots, stream_);
  connection_ = connection;
  peer_->connections.push_back(connection);
  connection->deliver = [inbox = inbox_, process = &process_](const v1::CoordinatorMessage& message) {
    if (message.has_welcome()) inbox->welcome = message.welcome();
    if (message.has_lease()) inbox->events.push_back(message.lease());
    if (message.has_finish()) inbox->events.push_back(message.finish());
    process->Notify();
  };
  stream_->on_client_end = [inbox = inbox_, process = &process_](const absl::Status& status) {
    inbox->end = status.ok() ? absl::UnavailableError("the coordinator ended the connection") : status;
    process->Notify();
  };
  stream_->on_server_end = [connection = connection_] {
    if (const auto locked = connection.lock()) locked->Ended();
  };
  v1::WorkerMessage message;
  *message.mutable_hello() = hello;
  Send(std::move(message), Stream::Repeat::kNever);
  while (!inbox_->welcome.has_value() && !inbox_->end.has_value()) {
    if (!process_.Wait(kPoll)) return absl::CancelledError("killed");
    MILLRACE_RETURN_IF_ERROR(wait("the coordinator"));
  }
  if (!inbox_->welcome.has_value()) return *inbox_->end;
  Beat(absl::Milliseconds(inbox_->welcome->heartbeat_interval_ms()));
  return absl::OkStatus();
}

void WorkLink::Beat(absl::Duration interval) {
  process_.Post(interval, [this, interval, beating = beating_] {
    if (!*beating || inbox_->end.has_value()) return;
    v1::WorkerMessage beat;
    beat.mutable_heartbeat()->set_waiting_for(activity_.waiting_for());
    Send(std::move(beat), Stream::Repeat::kMayComeTwice);
    Beat(interval);
  });
}

void WorkLink::Send(v1::WorkerMessage message, Stream::Repeat repeat) {
  if (!process_.alive()) return;
  stream_->ToServer(
      [connection = connection_, message = std::move(message)] {
        if (const auto locked = connection.lock()) locked->Receive(message);
      },
      repeat);
}

absl::StatusOr<std::optional<LeaseLink::Event>> WorkLink::Next(absl::Duration timeout) {
  const absl::Time deadline = process_.world().Now() + timeout;
  while (inbox_->events.empty() && !inbox_->end.has_value() && process_.world().Now() < deadline) {
    if (!process_.Wait(deadline - process_.world().Now())) break;
  }
  if (!process_.alive()) return absl::CancelledError("killed");
  if (!inbox_->events.empty()) {
    std::optional<Event> event = std::move(inbox_->events.front());
    inbox_->events.pop_front();
    return event;
  }
  if (!inbox_->end.has_value()) return std::optional<Event>();
  if (absl::IsAborted(*inbox_->end) || absl::IsInvalidArgument(*inbox_->end)) {
    return absl::AbortedError(absl::StrCat("sent away: ", inbox_->end->message()));
  }
  return absl::UnavailableError(absl::StrCat("the coordinator was lost: ", inbox_->end->message()));
}

void WorkLink::Report(const v1::Report& report) {
  v1::WorkerMessage message;
  *message.mutable_report() = report;
  Send(std::move(message), Stream::Repeat::kMayComeTwice);
}

void WorkLink::Decline(uint64_t lease_id, std::string_view reason, bool weights_gone) {
  v1::WorkerMessage message;
  message.mutable_decline()->set_lease_id(lease_id);
  message.mutable_decline()->set_weights_gone(weights_gone);
  message.mutable_decline()->set_reason(reason.data(), reason.size());
  Send(std::move(message), Stream::Repeat::kMayComeTwice);
}

void WorkLink::Leave() {
  v1::WorkerMessage message;
  message.mutable_leave();
  Send(std::move(message), Stream::Repeat::kMayComeTwice);
}

}  // namespace millrace::simulation
