#include "services/worker/parameter_client.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/backoff.h"
#include "common/grpc_channel.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

// How often a wait looks around: at the coordinator's messages, at stalls, at its own line. A lease that comes while
// the worker waits for weights may have to go first, so this is also how long such a lease lies about.
constexpr std::chrono::milliseconds kPoll(20);

absl::Status CheckShards(const ParameterClient::Options& options) {
  uint64_t next = 0;
  for (const v1::ShardInfo& shard : options.shards) {
    if (shard.begin() != next || shard.end() <= shard.begin()) break;
    next = shard.end();
  }
  if (options.shards.empty() || next != options.parameters.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator's ", options.shards.size(),
                                                   " shards do not cover the network's ", options.parameters.size(),
                                                   " parameters"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ParameterClient>> ParameterClient::Create(Options options,
                                                                         const WorkerMetrics* metrics) {
  MILLRACE_RETURN_IF_ERROR(CheckShards(options));
  return std::unique_ptr<ParameterClient>(new ParameterClient(options, metrics));
}

ParameterClient::ParameterClient(const Options& options, const WorkerMetrics* metrics) {
  v1::OpenExchange hello;
  hello.set_run_id(options.run_id);
  hello.set_worker(options.worker);
  hello.set_incarnation(options.incarnation);
  for (const v1::ShardInfo& shard : options.shards) {
    exchanges_.push_back(std::make_unique<ShardExchange>(
        ShardExchange::Options{.shard = shard,
                               .hello = hello,
                               .parameters = options.parameters.subspan(shard.begin(), shard.end() - shard.begin()),
                               .wire = options.wire,
                               .stall_timeout = options.stall_timeout},
        MakeChannel(shard.address(), options.credentials), &queue_, metrics));
  }
}

ParameterClient::~ParameterClient() {
  // Cancelled streams end at once, but their last events point into the exchanges, and ending a stream takes the queue.
  void* tag = nullptr;
  bool ok = false;
  for (auto& exchange : exchanges_) {
    exchange->Close();
    while (!exchange->closed() && queue_.Next(&tag, &ok)) {
      ShardExchange::Handle(static_cast<ShardExchange::Event*>(tag), ok);
    }
  }
  queue_.Shutdown();
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status ParameterClient::PollUntil(absl::FunctionRef<bool()> done, absl::FunctionRef<std::string()> what,
                                        WaitCallback wait) {
  absl::Time next_look = absl::InfinitePast();  // also at once: the line must name a wait from its beginning
  while (!done()) {
    const absl::Time now = absl::Now();
    if (now >= next_look) {
      next_look = now + absl::FromChrono(kPoll);
      for (auto& exchange : exchanges_) {
        exchange->Tick(now);
        MILLRACE_RETURN_IF_ERROR(exchange->refusal());
      }
      MILLRACE_RETURN_IF_ERROR(wait(what()));
    }
    HandleEvent(absl::FromChrono(kPoll));
  }
  return absl::OkStatus();
}

bool ParameterClient::HandleEvent(absl::Duration timeout) {
  void* tag = nullptr;
  bool ok = false;
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout);
  if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return false;
  ShardExchange::Handle(static_cast<ShardExchange::Event*>(tag), ok);
  return true;
}

absl::StatusOr<uint64_t> ParameterClient::AwaitNewest(uint64_t version, WaitCallback wait) {
  // What has arrived is newer than what is held; reading it costs a copy, no wait.
  while (HandleEvent(absl::ZeroDuration())) {
  }
  const auto lagging = [&]() -> ShardExchange* {
    for (const auto& exchange : exchanges_) {
      if (exchange->version().value_or(0) < version || !exchange->version().has_value()) return exchange.get();
    }
    return nullptr;
  };
  MILLRACE_RETURN_IF_ERROR(
      PollUntil([&] { return lagging() == nullptr; },
                [&] { return absl::StrCat("weights ", version, " or newer from ", lagging()->Describe()); }, wait));
  uint64_t oldest = *exchanges_.front()->version();
  for (const auto& exchange : exchanges_) oldest = std::min(oldest, *exchange->version());
  return oldest;
}

absl::StatusOr<ParameterLink::Weights> ParameterClient::AwaitVersion(uint64_t version, WaitCallback wait) {
  const auto lagging = [&]() -> ShardExchange* {
    for (const auto& exchange : exchanges_) {
      if (exchange->version() != version) return exchange.get();
    }
    return nullptr;
  };
  const auto to_fetch = [&]() -> ShardExchange* {
    for (const auto& exchange : exchanges_) {
      if (exchange->must_fetch(version)) return exchange.get();
    }
    return nullptr;
  };
  Backoff backoff;
  while (true) {
    MILLRACE_RETURN_IF_ERROR(
        PollUntil([&] { return lagging() == nullptr || to_fetch() != nullptr; },
                  [&] { return absl::StrCat("weights ", version, " from ", lagging()->Describe()); }, wait));
    // A shard is further than the lease: some worker was lost before everyone had what it computed.
    ShardExchange* const ahead = to_fetch();
    if (ahead == nullptr) return Weights::kReady;
    MILLRACE_RETURN_IF_ERROR(wait(absl::StrCat("weights ", version, " (not its newest) from ", ahead->Describe())));
    const absl::Status fetched = ahead->Fetch(version);
    if (absl::IsNotFound(fetched) || absl::IsUnimplemented(fetched)) return Weights::kMovedPast;
    if (fetched.ok()) continue;
    const absl::Time again = absl::Now() + backoff.Next();
    MILLRACE_RETURN_IF_ERROR(PollUntil(
        [&] { return absl::Now() >= again; },
        [&] { return absl::StrCat("weights ", version, " from ", ahead->Describe(), ": ", fetched.message()); }, wait));
  }
}

absl::Status ParameterClient::Push(const GradientPush& push, WaitCallback wait) {
  for (auto& exchange : exchanges_) exchange->StartPush(push);
  const auto owing = [&]() -> const ShardExchange* {
    for (const auto& exchange : exchanges_) {
      if (!exchange->push_done()) return exchange.get();
    }
    return nullptr;
  };
  absl::Status status =
      PollUntil([&] { return owing() == nullptr; },
                [&] {
                  return absl::StrCat("the acknowledgement of step ", push.step, " slots [", push.slots.begin, ", ",
                                      push.slots.end, ") by ", owing()->Describe());
                },
                wait);
  if (!status.ok()) {
    for (auto& exchange : exchanges_) exchange->AbandonPush();
  }
  return status;
}

}  // namespace millrace
