#include "tests/simulation/exchange_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace::simulation {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kFetchDeadline = absl::Seconds(1);
// Messages that fit between the two ends before the shard has to wait.
constexpr uint32_t kWindow = 3;

// One message in one piece, or cut anywhere, as the wire may.
class Pieces {
 public:
  Pieces(std::span<const std::byte> bytes, uint32_t cut) {
    pieces_ = {bytes.first(cut % bytes.size()), bytes.subspan(cut % bytes.size())};
    size_ = bytes.size();
  }
  ByteRope rope() const { return ByteRope(pieces_, 0, size_); }

 private:
  std::vector<ByteRope::Piece> pieces_;
  size_t size_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Shard>> ShardPeer::ServedRun(uint64_t run_id) const {
  if (shard == nullptr) return absl::UnavailableError("the shard is starting");
  if (shard->plan().run_id() == run_id) return shard;
  return absl::FailedPreconditionError("another run: join the job again");
}

void ShardPeer::Serve(std::shared_ptr<Shard> served) {
  shard = std::move(served);
  shard->OnApplied([this, of = shard.get()](const WeightsProgress& progress) {
    for (const auto& exchange : exchanges) exchange->Offer(of, progress);
  });
}

void ShardPeer::EndRun() {
  shard.reset();
  for (const auto& exchange : exchanges) exchange->End(absl::FailedPreconditionError("the run is over"));
}

// --- The shard's end ---

void ShardPeer::Exchange::Open(uint64_t run_id) {
  absl::StatusOr<std::shared_ptr<Shard>> shard = peer_.ServedRun(run_id);
  if (!shard.ok()) return End(shard.status());
  shard_ = *std::move(shard);
  const WeightsVersion whole = shard_->weights();
  Offer(shard_.get(), {whole, whole.values.size()});
}

void ShardPeer::Exchange::Push(const GradientChunkHeader& header, std::span<const float> values) {
  if (shard_ == nullptr) return;
  const WireValues wire = ToWire(shard_->plan().spec().wire(), values, nullptr);
  const Pieces pieces(wire.bytes, peer_.process->world().Random(1 << 20));
  const absl::StatusOr<Shard::AddResult> added = shard_->AddGradient({header, pieces.rope()});
  if (!added.ok()) return End(added.status());
  if (added->push_complete) {
    v1::PushAck& ack = acks_.emplace_back();
    ack.set_step(header.step);
    ack.set_slot_begin(header.slot_begin);
    ack.set_slot_end(header.slot_end);
    WriteNext();
  }
  if (!added->chunk_complete) return;
  if (const absl::Status applied = shard_->Apply(); !applied.ok()) End(applied);
}

void ShardPeer::Exchange::Offer(const Shard* of, const WeightsProgress& progress) {
  if (shard_.get() == of && outbox_.Offer(progress)) WriteNext();
}

void ShardPeer::Exchange::WasRead() {
  --unread_;
  WriteNext();
}

void ShardPeer::Exchange::WriteNext() {
  while (unread_ < kWindow) {
    outbox_.Advance();
    if (!acks_.empty()) {
      stream_->ToClient([deliver = deliver, ack = std::move(acks_.front())] { deliver(ack); });
      acks_.pop_front();
    } else if (std::optional<WeightsOutbox::Piece> piece = outbox_.Next()) {
      // The values are read on arrival: until then the shard may not write to them.
      stream_->ToClient([deliver = deliver, piece = *std::move(piece)] {
        deliver(ArrivedWeights{piece.header, {piece.values.bytes.begin(), piece.values.bytes.end()}});
      });
    } else {
      return;
    }
    ++unread_;
  }
}

// --- The worker's end ---

ExchangeLink::ExchangeLink(Process* process, Network* network, FindPeer find, const v1::JobPlan& plan,
                           const std::vector<v1::ShardInfo>& shards, std::span<float> parameters)
    : process_(*process),
      network_(*network),
      find_(std::move(find)),
      run_id_(plan.run_id()),
      wire_(plan.spec().wire()) {
  for (const v1::ShardInfo& shard : shards) {
    const std::span<float> range = parameters.subspan(shard.begin(), shard.end() - shard.begin());
    const uint64_t seed = process->world().Random(1 << 30);
    lanes_.push_back({.shard = shard,
                      .inbox = WeightsInbox(range, wire_),
                      .backoff = Backoff(Backoff::kDefaultInitial, Backoff::kDefaultMax, seed),
                      .stream = {},
                      .mailbox = {},
                      .exchange = {},
                      .push = {}});
  }
}

ExchangeLink::~ExchangeLink() {
  for (const Lane& lane : lanes_) {
    if (lane.stream != nullptr && process_.alive()) lane.stream->EndByClient();
  }
}

void ExchangeLink::Open(Lane& lane) {
  ShardPeer* const peer = find_(lane.shard.shard());
  lane.inbox.StreamOpened();
  if (peer == nullptr || !peer->process->alive()) {
    lane.next_open = process_.world().Now() + lane.backoff.Next();
    return;
  }
  lane.stream = network_.Connect(process_.shared_from_this(), peer->process);
  lane.mailbox = std::make_shared<Mailbox>();
  auto exchange = std::make_shared<ShardPeer::Exchange>(peer, lane.stream);
  lane.exchange = exchange;
  peer->exchanges.push_back(exchange);
  exchange->deliver = [mailbox = lane.mailbox, process = &process_](ExchangeMessage message) {
    mailbox->messages.push_back(std::move(message));
    process->Notify();
  };
  lane.stream->on_client_end = [mailbox = lane.mailbox, process = &process_](const absl::Status& status) {
    mailbox->end = status;
    process->Notify();
  };
  lane.stream->on_server_end = [peer, gone = exchange.get()] {
    std::erase_if(peer->exchanges, [&](const auto& exchange) { return exchange.get() == gone; });
  };
  lane.stream->ToServer([exchange = lane.exchange, run_id = run_id_] {
    if (const auto locked = exchange.lock()) locked->Open(run_id);
  });
  SendPush(lane);
}

// Every chunk; those the shard has already change nothing.
void ExchangeLink::SendPush(Lane& lane) {
  if (!lane.push.has_value() || lane.stream == nullptr) return;
  const uint64_t range = lane.shard.end() - lane.shard.begin();
  for (uint64_t offset = 0; offset < range; offset += kToyChunkElements) {
    const GradientChunkHeader header{.step = lane.push->step,
                                     .slot_begin = lane.push->slots.begin,
                                     .slot_end = lane.push->slots.end,
                                     .samples = lane.push->samples,
                                     .offset = offset,
                                     .weights_version = lane.push->weights_version};
    const std::span<const float> values =
        lane.push->gradient->span().subspan(lane.shard.begin() + offset, ChunkSize(range, offset, kToyChunkElements));
    lane.stream->ToServer(
        [exchange = lane.exchange, header, values, owner = lane.push->gradient] {
          if (const auto locked = exchange.lock()) locked->Push(header, values);
        },
        Stream::Repeat::kMayComeTwice);
  }
}

absl::Status ExchangeLink::Attend(Lane& lane) {
  if (lane.stream == nullptr) {
    if (process_.world().Now() >= lane.next_open) Open(lane);
    return absl::OkStatus();
  }
  while (!lane.mailbox->messages.empty()) {
    const ExchangeMessage message = std::move(lane.mailbox->messages.front());
    lane.mailbox->messages.pop_front();
    lane.stream->ToServer([exchange = lane.exchange] {
      if (const auto locked = exchange.lock()) locked->WasRead();
    });
    lane.backoff.Reset();
    if (const auto* weights = std::get_if<ArrivedWeights>(&message)) {
      const Pieces pieces(weights->values, process_.world().Random(1 << 20));
      const absl::Status received = lane.inbox.Receive({weights->header, pieces.rope()});
      process_.world().Expect(received.ok(), std::string(received.message()));
    } else {
      const v1::PushAck& ack = std::get<v1::PushAck>(message);
      if (lane.push.has_value() && ack.step() == lane.push->step && ack.slot_begin() == lane.push->slots.begin &&
          ack.slot_end() == lane.push->slots.end) {
        lane.push.reset();
      }
    }
  }
  if (!lane.mailbox->end.has_value()) return absl::OkStatus();
  const absl::Status end = *lane.mailbox->end;
  lane.stream = nullptr;
  lane.next_open = process_.world().Now() + lane.backoff.Next();
  if (absl::IsFailedPrecondition(end)) return absl::UnavailableError(end.message());
  return absl::IsUnavailable(end) ? absl::OkStatus() : end;
}

absl::Status ExchangeLink::PollUntil(absl::FunctionRef<bool()> done, absl::FunctionRef<std::string()> what,
                                     WaitCallback wait) {
  while (true) {
    for (Lane& lane : lanes_) MILLRACE_RETURN_IF_ERROR(Attend(lane));
    if (done()) return absl::OkStatus();
    MILLRACE_RETURN_IF_ERROR(wait(what()));
    if (!process_.Wait(kPoll)) return absl::CancelledError("killed");
  }
}

absl::StatusOr<ParameterLink::Weights> ExchangeLink::AwaitVersion(uint64_t version, WaitCallback wait) {
  const auto find = [&](auto matches) -> Lane* {
    for (Lane& lane : lanes_) {
      if (matches(lane)) return &lane;
    }
    return nullptr;
  };
  const auto lagging = [&] { return find([&](const Lane& lane) { return lane.inbox.version() != version; }); };
  const auto to_fetch = [&] { return find([&](const Lane& lane) { return lane.inbox.must_fetch(version); }); };
  while (true) {
    MILLRACE_RETURN_IF_ERROR(
        PollUntil([&] { return lagging() == nullptr || to_fetch() != nullptr; },
                  [&] { return absl::StrCat("weights ", version, " from shard ", lagging()->shard.shard()); }, wait));
    Lane* const ahead = to_fetch();
    if (ahead == nullptr) return Weights::kReady;
    const absl::Status fetched = Fetch(*ahead, version);
    if (absl::IsNotFound(fetched)) return Weights::kMovedPast;
    if (fetched.ok()) continue;
    const absl::Time again = process_.world().Now() + absl::Milliseconds(100);
    MILLRACE_RETURN_IF_ERROR(PollUntil([&] { return process_.world().Now() >= again; },
                                       [&] { return absl::StrCat("weights ", version, ": ", fetched.message()); },
                                       wait));
  }
}

absl::StatusOr<uint64_t> ExchangeLink::AwaitNewest(uint64_t version, WaitCallback wait) {
  const auto behind = [&](const Lane& lane) {
    return lane.inbox.version().value_or(0) < version || !lane.inbox.version();
  };
  MILLRACE_RETURN_IF_ERROR(PollUntil([&] { return std::none_of(lanes_.begin(), lanes_.end(), behind); },
                                     [&] { return absl::StrCat("weights ", version, " or newer"); }, wait));
  uint64_t oldest = *lanes_.front().inbox.version();
  for (const Lane& lane : lanes_) oldest = std::min(oldest, *lane.inbox.version());
  return oldest;
}

absl::Status ExchangeLink::Fetch(Lane& lane, uint64_t version) {
  ShardPeer* const peer = find_(lane.shard.shard());
  const auto serve = [peer, version, run_id = run_id_]() -> absl::StatusOr<WeightsVersion> {
    MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<Shard> shard, peer->ServedRun(run_id));
    return shard->WeightsAt(version);
  };
  const auto call = network_.Start<WeightsVersion>(process_.shared_from_this(), peer ? peer->process : nullptr, serve);
  lane.inbox.BeginFetch();
  MILLRACE_ASSIGN_OR_RETURN(const WeightsVersion fetched,
                            call.Await(process_, process_.world().Now() + kFetchDeadline));
  const WireValues values = ToWire(wire_, fetched.values, fetched.owner);
  MILLRACE_RETURN_IF_ERROR(lane.inbox.ReceiveFetched(0, ByteRope({&values.bytes, 1}, 0, values.bytes.size())));
  return lane.inbox.Fetched(version);
}

absl::Status ExchangeLink::Push(const GradientPush& push, WaitCallback wait) {
  for (Lane& lane : lanes_) {
    lane.push = push;
    SendPush(lane);
  }
  const auto owing = [&]() -> const Lane* {
    for (const Lane& lane : lanes_) {
      if (lane.push.has_value()) return &lane;
    }
    return nullptr;
  };
  const absl::Status status = PollUntil(
      [&] { return owing() == nullptr; },
      [&] { return absl::StrCat("the acknowledgement of step ", push.step, " by shard ", owing()->shard.shard()); },
      wait);
  if (!status.ok()) {
    for (Lane& lane : lanes_) lane.push.reset();
  }
  return status;
}

}  // namespace millrace::simulation
