// The exchanges between workers and shards, both ends, in place of ExchangeReactor and ShardExchange. What is sent and
// what is kept of it is production code: Shard, WeightsOutbox, WeightsInbox.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/backoff.h"
#include "services/parameter_server/shard.h"
#include "services/parameter_server/weights_outbox.h"
#include "services/worker/ports.h"
#include "services/worker/weights_inbox.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

// Pieces of a push and of a version are this long, so that small vectors have several.
inline constexpr uint64_t kToyChunkElements = 64;

// A shard that can be talked to. Its process hosts it.
struct ShardPeer {
  std::shared_ptr<Process> process;
  std::shared_ptr<Shard> shard;  // of the run that is served; null between two
  class Exchange;
  std::vector<std::shared_ptr<Exchange>> exchanges;

  // As ParameterService: the shard if it is of this run, and what happens when a run begins and ends.
  absl::StatusOr<std::shared_ptr<Shard>> ServedRun(uint64_t run_id) const;
  void Serve(std::shared_ptr<Shard> served);
  void EndRun();
};

struct ArrivedWeights {
  WeightsChunkHeader header;
  std::vector<std::byte> values;  // as they travelled
};
using ExchangeMessage = std::variant<v1::PushAck, ArrivedWeights>;

// The shard's end.
class ShardPeer::Exchange {
 public:
  Exchange(ShardPeer* peer, std::shared_ptr<Stream> stream)
      : peer_(*peer), stream_(std::move(stream)), outbox_(kToyChunkElements) {}

  void Open(uint64_t run_id);
  void Push(const GradientChunkHeader& header, std::span<const float> values);
  void Offer(const Shard* of, const WeightsProgress& progress);
  void End(const absl::Status& status) { stream_->EndByServer(status); }
  // The worker has read one message.
  void WasRead();

  std::function<void(ExchangeMessage)> deliver;  // at the worker's end

 private:
  void WriteNext();

  ShardPeer& peer_;
  const std::shared_ptr<Stream> stream_;
  std::shared_ptr<Shard> shard_;  // once it is open
  std::deque<v1::PushAck> acks_;
  WeightsOutbox outbox_;
  uint32_t unread_ = 0;
};

// The worker's end: all exchanges of one session.
class ExchangeLink final : public ParameterLink {
 public:
  // Where shard i is now; null if nowhere.
  using FindPeer = std::function<ShardPeer*(uint32_t shard)>;

  ExchangeLink(Process* process, Network* network, FindPeer find, const v1::JobPlan& plan,
               const std::vector<v1::ShardInfo>& shards, std::span<float> parameters);
  ~ExchangeLink() override;

  absl::StatusOr<Weights> AwaitVersion(uint64_t version, WaitCallback wait) override;
  absl::StatusOr<uint64_t> AwaitNewest(uint64_t version, WaitCallback wait) override;
  absl::Status Push(const GradientPush& push, WaitCallback wait) override;

 private:
  // Messages on their way may outlive the link.
  struct Mailbox {
    std::deque<ExchangeMessage> messages;
    std::optional<absl::Status> end;
  };
  struct Lane {
    v1::ShardInfo shard;
    WeightsInbox inbox;
    Backoff backoff;
    std::shared_ptr<Stream> stream;  // null while there is none
    std::shared_ptr<Mailbox> mailbox;
    std::weak_ptr<ShardPeer::Exchange> exchange;
    absl::Time next_open = absl::InfinitePast();
    std::optional<GradientPush> push;
  };

  void Open(Lane& lane);
  void SendPush(Lane& lane);
  // Takes in what has arrived; opens streams. An error is a refusal.
  absl::Status Attend(Lane& lane);
  absl::Status PollUntil(absl::FunctionRef<bool()> done, absl::FunctionRef<std::string()> what, WaitCallback wait);
  absl::Status Fetch(Lane& lane, uint64_t version);

  Process& process_;
  Network& network_;
  const FindPeer find_;
  const uint64_t run_id_;
  const v1::NumberFormat wire_;
  std::vector<Lane> lanes_;
};

}  // namespace millrace::simulation
