#include "tests/simulation/network.h"

#include <algorithm>

namespace millrace::simulation {

void Stream::Deliver(End& end, std::function<void()> deliver, Repeat repeat) {
  if (!open_) return;
  World& world = network_.world();
  if (world.Chance(network_.conditions.break_chance)) return Break();
  const auto send = [&](absl::Time time) {
    end.process->Post(time - world.Now(), [self = shared_from_this(), &end, deliver] {
      if (!end.ended && !end.loses) deliver();
    });
  };
  end.next = std::max(end.next, world.Now() + network_.Delay());
  send(end.next);
  const bool again = repeat == Repeat::kMayComeTwice && world.Chance(network_.conditions.duplicate_chance);
  if (again) send(end.next + world.Between(absl::ZeroDuration(), absl::Seconds(1)));
}

void Stream::ToServer(std::function<void()> deliver, Repeat repeat) { Deliver(server_, std::move(deliver), repeat); }
void Stream::ToClient(std::function<void()> deliver, Repeat repeat) { Deliver(client_, std::move(deliver), repeat); }

void Stream::EndClient(absl::Duration delay, absl::Status status) {
  client_.process->Post(delay, [self = shared_from_this(), status = std::move(status)] {
    if (std::exchange(self->client_.ended, true)) return;
    if (self->on_client_end) self->on_client_end(status);
  });
}

void Stream::EndServer(absl::Duration delay) {
  server_.process->Post(delay, [self = shared_from_this()] {
    if (std::exchange(self->server_.ended, true)) return;
    if (self->on_server_end) self->on_server_end();
  });
}

void Stream::EndByServer(absl::Status status) {
  if (!std::exchange(open_, false)) return;
  client_.next = std::max(client_.next, network_.world().Now() + network_.Delay());
  EndClient(client_.next - network_.world().Now(), std::move(status));
  EndServer(network_.Delay());
}

void Stream::EndByClient() {
  client_.ended = true;
  if (!std::exchange(open_, false)) return;
  server_.next = std::max(server_.next, network_.world().Now() + network_.Delay());
  EndServer(server_.next - network_.world().Now());
}

void Stream::Break() {
  if (!std::exchange(open_, false)) return;
  World& world = network_.world();
  client_.loses = world.Chance(0.7);
  server_.loses = world.Chance(0.5);
  const absl::Duration notice = network_.conditions.notice;
  EndClient(world.Between(absl::ZeroDuration(), notice), absl::UnavailableError("the connection was lost"));
  EndServer(world.Between(absl::ZeroDuration(), notice));
}

void Network::BreakOne() {
  if (streams_.empty()) return;
  streams_[world_.Random(static_cast<uint32_t>(streams_.size()))]->Break();
}

void Network::BreakAllOf(const Process* process) {
  // By index: nothing is called back now, but a copy costs more.
  for (size_t i = 0; i < streams_.size(); ++i) {
    if (streams_[i]->Touches(process)) streams_[i]->Break();
  }
}

}  // namespace millrace::simulation
