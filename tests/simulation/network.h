// How messages travel between processes: each takes its time; those of one stream stay in order; a stream may break,
// with which some of what is on its way is lost, and each end hears of it in its own time. Beside that, messages that
// may come twice do so now and then, late and out of order.
//
// Threads: one.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

struct Conditions {
  absl::Duration delay = absl::Milliseconds(2);  // at most
  double break_chance = 0;                       // of a stream, at each message
  double duplicate_chance = 0;
  double call_loss_chance = 0;                     // of a unary call's request or response
  absl::Duration notice = absl::Milliseconds(50);  // at most, until an end hears that its stream broke
};

class Network;

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(Network* network, std::shared_ptr<Process> client, std::shared_ptr<Process> server)
      : network_(*network), client_{std::move(client), {}}, server_{std::move(server), {}} {}

  // Called once on the end's process; nothing is delivered to that end afterwards.
  std::function<void(const absl::Status&)> on_client_end;
  std::function<void()> on_server_end;

  enum class Repeat { kNever, kMayComeTwice };
  void ToServer(std::function<void()> deliver, Repeat repeat = Repeat::kNever);
  void ToClient(std::function<void()> deliver, Repeat repeat = Repeat::kNever);

  // The server ends the stream with `status`, after what it has sent.
  void EndByServer(absl::Status status);
  void EndByClient();
  // The connection is lost.
  void Break();

  bool Touches(const Process* process) const {
    return client_.process.get() == process || server_.process.get() == process;
  }
  bool over() const { return client_.ended && server_.ended; }

 private:
  struct End {
    std::shared_ptr<Process> process;
    absl::Time next;     // nothing is delivered to it before
    bool loses = false;  // what is on its way to it is lost
    bool ended = false;
  };

  void Deliver(End& end, std::function<void()> deliver, Repeat repeat);
  void EndClient(absl::Duration delay, absl::Status status);
  void EndServer(absl::Duration delay);

  Network& network_;
  bool open_ = true;
  End client_;
  End server_;
};

class Network {
 public:
  explicit Network(World* world) : world_(*world) {}

  Conditions conditions;

  World& world() { return world_; }
  absl::Duration Delay() { return world_.Between(absl::Microseconds(50), conditions.delay); }

  std::shared_ptr<Stream> Connect(std::shared_ptr<Process> client, std::shared_ptr<Process> server) {
    std::erase_if(streams_, [](const std::shared_ptr<Stream>& stream) { return stream->over(); });
    return streams_.emplace_back(std::make_shared<Stream>(this, std::move(client), std::move(server)));
  }
  // One of the open streams, or all of a process that died.
  void BreakOne();
  void BreakAllOf(const Process* process);

  // A unary call: `serve` runs as a fiber of the server, perhaps twice, perhaps with nobody to hear the answer.
  template <typename T>
  class Call {
   public:
    bool done() const { return state_->has_value(); }
    // Of a fiber of the client; DEADLINE_EXCEEDED when it is over.
    absl::StatusOr<T> Await(Process& client, absl::Time deadline) const {
      while (!done()) {
        if (client.world().Now() >= deadline) return absl::DeadlineExceededError("no answer");
        if (!client.Wait(deadline - client.world().Now())) return absl::CancelledError("killed");
      }
      return **state_;
    }

   private:
    friend class Network;
    std::shared_ptr<std::optional<absl::StatusOr<T>>> state_ = std::make_shared<std::optional<absl::StatusOr<T>>>();
  };

  template <typename T>
  Call<T> Start(const std::shared_ptr<Process>& client, const std::shared_ptr<Process>& server,
                std::function<absl::StatusOr<T>()> serve) {
    Call<T> call;
    const auto answer = [this, client, state = call.state_](absl::StatusOr<T> result) {
      if (world_.Chance(conditions.call_loss_chance)) return;
      client->Post(Delay(), [client, state, result = std::move(result)] {
        if (!state->has_value()) *state = result;
        client->Notify();
      });
    };
    if (server == nullptr || !server->alive()) {
      answer(absl::UnavailableError("nobody listens there"));
      return call;
    }
    if (world_.Chance(conditions.call_loss_chance)) return call;
    const int times = world_.Chance(conditions.duplicate_chance) ? 2 : 1;
    for (int i = 0; i < times; ++i) {
      server->Post(Delay(), [server = server.get(), serve, answer] {
        server->Spawn([server, serve, answer] {
          if (!server->alive()) return;
          absl::StatusOr<T> result = serve();
          if (server->alive()) answer(std::move(result));
        });
      });
    }
    return call;
  }

 private:
  World& world_;
  std::vector<std::shared_ptr<Stream>> streams_;
};

}  // namespace millrace::simulation
