// The stream between a worker and the coordinator, both ends: in place of CoordinatorService and CoordinatorClient.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "services/parameter_server/coordinator.h"
#include "services/worker/activity.h"
#include "services/worker/ports.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

// A coordinator that can be talked to, and what was said. Its process hosts it.
struct CoordinatorPeer {
  std::shared_ptr<Process> process;
  Coordinator* coordinator = nullptr;               // null while it starts
  uint32_t slots = 1;                               // of the job
  absl::Time last_progress = absl::InfinitePast();  // a report or a hello
  class Connection;
  std::vector<std::shared_ptr<Connection>> connections;  // as long as the coordinator may use them
};

// The coordinator's end.
class CoordinatorPeer::Connection final : public WorkerConnection {
 public:
  Connection(CoordinatorPeer* peer, uint32_t slots, std::shared_ptr<Stream> stream);

  void Send(const v1::CoordinatorMessage& message) override;
  void Close(const absl::Status& status) override;
  void Receive(const v1::WorkerMessage& message);
  void Ended();

  std::function<void(const v1::CoordinatorMessage&)> deliver;  // at the worker's end

 private:
  CoordinatorPeer& peer_;
  const uint32_t slots_;
  const std::shared_ptr<Stream> stream_;
  std::optional<WorkerId> worker_;
  std::set<uint64_t> held_;  // leases granted and not returned
  uint32_t unread_ = 0;
};

// The worker's end.
class WorkLink final : public LeaseLink {
 public:
  WorkLink(Process* process, Network* network, CoordinatorPeer* peer, const Activity* activity)
      : process_(*process), network_(*network), peer_(peer), activity_(*activity) {}
  ~WorkLink() override;

  // Says hello and waits to be welcomed.
  absl::Status Connect(const v1::Hello& hello, WaitCallback wait);
  const v1::Welcome& welcome() const { return *inbox_->welcome; }

  absl::StatusOr<std::optional<Event>> Next(absl::Duration timeout) override;
  void Report(const v1::Report& report) override;
  void Decline(uint64_t lease_id, std::string_view reason, bool weights_gone) override;
  void Leave() override;

 private:
  // What has arrived; messages on their way may outlive the link.
  struct Inbox {
    std::optional<v1::Welcome> welcome;
    std::deque<Event> events;
    std::optional<absl::Status> end;
  };

  void Send(v1::WorkerMessage message, Stream::Repeat repeat);
  void Beat(absl::Duration interval);

  Process& process_;
  Network& network_;
  CoordinatorPeer* const peer_;
  const Activity& activity_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::shared_ptr<Stream> stream_;
  std::weak_ptr<CoordinatorPeer::Connection> connection_;
  const std::shared_ptr<bool> beating_ = std::make_shared<bool>(true);
};

}  // namespace millrace::simulation
