#include "tests/bench/simulated_workers.h"

#include <unistd.h>

#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/hashing.h"
#include "common/status_macros.h"
#include "services/parameter_server/rounds.h"
#include "services/worker/coordinator_client.h"
#include "services/worker/parameter_client.h"

namespace millrace {
namespace {

constexpr absl::Duration kLeasePoll = absl::Milliseconds(200);

// Small numbers with few bits: their sums over slots are exact, so a multiple is the sum in any order.
float GradientAt(uint64_t element) { return static_cast<float>(element % 1024 + 1) / 1024; }

}  // namespace

SimulatedWorkers::SimulatedWorkers(const BenchCluster& cluster, uint32_t count, absl::Duration compute,
                                   std::function<void(uint64_t)> on_version)
    : cluster_(cluster),
      compute_(compute),
      on_version_(std::move(on_version)),
      metrics_("bench"),
      worker_metrics_(metrics_),
      threads_(count) {
  for (uint32_t worker = 0; worker < count; ++worker) threads_[worker] = std::thread([this, worker] { Run(worker); });
}

SimulatedWorkers::~SimulatedWorkers() {
  stopping_ = true;
  for (std::thread& thread : threads_) thread.join();
}

absl::Status SimulatedWorkers::status() const {
  MutexLock lock(&mutex_);
  return status_;
}

void SimulatedWorkers::Run(uint32_t worker) {
  const absl::Status ended = Work(worker);
  if (stopping_) return;
  MutexLock lock(&mutex_);
  if (status_.ok()) status_ = absl::AbortedError(absl::StrCat("worker ", worker, " ended: ", ended.ToString()));
}

SimulatedWorkers::Gradient SimulatedWorkers::SumOf(uint32_t slots) {
  MutexLock lock(&mutex_);
  Gradient& sum = sums_[slots];
  if (sum == nullptr) {
    auto values = std::make_shared<AlignedBuffer<float>>(parameters_);
    for (uint64_t i = 0; i < values->size(); ++i) values->data()[i] = GradientAt(i) * static_cast<float>(slots);
    sum = std::move(values);
  }
  return sum;
}

absl::Status SimulatedWorkers::Work(uint32_t worker) {
  const auto wait = [this](std::string_view) {
    return stopping_ ? absl::CancelledError("the bench is over") : absl::OkStatus();
  };
  MILLRACE_ASSIGN_OR_RETURN(const std::filesystem::path sockets, cluster_.SocketsFor(worker));
  CoordinatorClient::Options options{
      .address = BenchCluster::AddressIn(sockets, cluster_.coordinator_address()),
      .hello = {},
      .waiting_for = [] { return std::string(); },
  };
  options.hello.set_worker(absl::StrCat("worker-", worker));
  options.hello.set_incarnation(worker + 1);
  options.hello.set_process_id(getpid());
  MILLRACE_ASSIGN_OR_RETURN(const auto coordinator, CoordinatorClient::Connect(std::move(options), wait));

  const v1::Welcome& welcome = coordinator->welcome();
  const v1::JobPlan& plan = welcome.plan();
  parameters_ = plan.parameter_count();
  AlignedBuffer<float> weights(plan.parameter_count());
  ParameterClient::Options where{.run_id = plan.run_id(),
                                 .worker = absl::StrCat("worker-", worker),
                                 .incarnation = worker + 1,
                                 .shards = {welcome.shards().begin(), welcome.shards().end()},
                                 .parameters = weights.span(),
                                 .wire = plan.spec().wire()};
  for (v1::ShardInfo& shard : where.shards) shard.set_address(BenchCluster::AddressIn(sockets, shard.address()));
  MILLRACE_ASSIGN_OR_RETURN(const auto parameters, ParameterClient::Create(std::move(where), &worker_metrics_));
  const Gradient one = SumOf(1);
  const uint64_t checksum = Checksum64(std::as_bytes(one->span()));

  for (bool first = true;;) {
    MILLRACE_ASSIGN_OR_RETURN(const std::optional<LeaseLink::Event> event, coordinator->Next(kLeasePoll));
    MILLRACE_RETURN_IF_ERROR(wait(""));
    if (!event.has_value()) continue;
    const auto* const lease = std::get_if<v1::Lease>(&*event);
    if (lease == nullptr || lease->kind() != v1::Lease::KIND_TRAIN) return absl::InternalError("the job is over");
    const uint64_t step = lease->version(), version = step - lease->staleness();
    MILLRACE_ASSIGN_OR_RETURN(const ParameterLink::Weights have, parameters->AwaitVersion(version, wait));
    if (have == ParameterLink::Weights::kMovedPast) {
      coordinator->Decline(lease->id(), "moved past", /*weights_gone=*/true);
      continue;
    }
    if (worker == 0) on_version_(version);
    if (compute_ > absl::ZeroDuration()) absl::SleepFor(compute_);

    v1::Report report;
    report.set_lease_id(lease->id());
    for (uint32_t slot = lease->begin(); slot < lease->end(); ++slot) {
      v1::UnitResult& result = *report.add_results();
      result.set_unit(slot);
      result.set_samples(UnitSamples(plan, {.version = step}, slot));
      result.set_loss_sum(1);
      result.set_checksum(checksum);
    }
    MILLRACE_RETURN_IF_ERROR(parameters->Push({.step = step,
                                               .slots = {lease->begin(), lease->end()},
                                               .samples = plan.spec().batch_size(),
                                               .weights_version = version,
                                               .gradient = SumOf(lease->end() - lease->begin())},
                                              wait));
    coordinator->Report(report);
    ++pushes_;
    if (std::exchange(first, false)) ++at_work_;
  }
}

}  // namespace millrace
