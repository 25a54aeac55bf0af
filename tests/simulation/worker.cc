#include "tests/simulation/worker.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/status_macros.h"
#include "tests/simulation/exchange_link.h"
#include "tests/simulation/work_link.h"

namespace millrace::simulation {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(200);

// As worker.cc.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status) ||
         absl::IsAlreadyExists(status) || absl::IsUnknown(status);
}

}  // namespace

class SimulatedWorker::Batches final : public BatchSource {
 public:
  Batches(SimulatedWorker* worker, const v1::JobPlan& plan) : worker_(*worker), plan_(plan) {}

  void Prefetch(const std::vector<BatchKey>& keys) override {
    World& world = *worker_.job_.world;
    for (const BatchKey& key : keys) {
      asked_.emplace(key, world.Now() + world.Between(absl::ZeroDuration(), worker_.data_.delay));
    }
    // Two leases, each of at most a whole round, and what is guessed of the step after an evaluation.
    const uint32_t units = std::max({plan_.spec().slots(), RoundUnits(plan_, {v1::Lease::KIND_VALIDATION, 0}),
                                     RoundUnits(plan_, {v1::Lease::KIND_TEST, 0})});
    world.Expect(asked_.size() <= 3 * units, "a worker has asked for more batches than its leases need");
  }

  absl::StatusOr<v1::Batch> Get(const BatchKey& key, WaitCallback wait) override {
    World& world = *worker_.job_.world;
    // Asked for now if another lease with the same batch, a test of another version, has taken it.
    const absl::Time ready = asked_.emplace(key, world.Now() + worker_.data_.delay).first->second;
    while (world.Now() < ready || !worker_.data_.up) {
      MILLRACE_RETURN_IF_ERROR(wait(absl::StrCat(key.ToString(), " from the data service")));
      const absl::Duration left = worker_.data_.up ? std::min(kPoll, ready - world.Now()) : kPoll;
      if (!worker_.process_->Sleep(left)) return absl::CancelledError("killed");
    }
    asked_.erase(key);
    return ToyBatch(plan_, key);
  }

  void Forget(const std::vector<BatchKey>& keys) override {
    for (const BatchKey& key : keys) asked_.erase(key);
  }

 private:
  SimulatedWorker& worker_;
  const v1::JobPlan plan_;
  std::map<BatchKey, absl::Time> asked_;  // and when each arrives
};

SimulatedWorker::SimulatedWorker(Job* job, const DataService* data, const WorkerMetrics* metrics, uint32_t number)
    : job_(*job),
      data_(*data),
      metrics_(*metrics),
      incarnation_((uint64_t{job->world->Random(UINT32_MAX)} << 16) + number),
      process_(Process::Start(job->world, absl::StrCat("worker-", number))),
      activity_(job->world),
      parameters_(job->plan.parameter_count()) {
  process_->Spawn([this] { Run(); });
}

SimulatedWorker::~SimulatedWorker() {
  process_->Kill();
  job_.network->BreakAllOf(process_.get());
}

void SimulatedWorker::Drain() {
  draining_ = true;
  if (loop_ != nullptr) loop_->Drain();
}

void SimulatedWorker::Run() {
  const absl::Cleanup ended = [this] { ended_ = true; };
  Backoff backoff(Backoff::kDefaultInitial, Backoff::kDefaultMax, job_.world->Random(1 << 30));
  while (process_->alive() && !draining_) {
    bool welcomed = false;
    const absl::StatusOr<WorkLoop::End> end = RunSession(welcomed);
    if (!process_->alive()) return;
    job_.world->Trace([&] { return absl::StrCat(process_->name(), " session ends: ", end.status().ToString()); });
    if (end.ok() || draining_) return;
    if (!IsTransient(end.status())) {
      status_ = end.status();
      return;
    }
    if (welcomed) backoff.Reset();
    activity_.WaitingFor("the coordinator");
    process_->Sleep(backoff.Next());
  }
}

absl::StatusOr<WorkLoop::End> SimulatedWorker::RunSession(bool& welcomed) {
  Server* const first = job_.servers[0].get();
  WorkLink leases(process_.get(), job_.network, first == nullptr ? nullptr : first->coordinator_peer(), &activity_);
  v1::Hello hello;
  hello.set_worker(process_->name());
  hello.set_incarnation(incarnation_);
  MILLRACE_RETURN_IF_ERROR(leases.Connect(hello, [&](std::string_view what) {
    activity_.WaitingFor(what);
    return draining_ ? absl::CancelledError("draining") : absl::OkStatus();
  }));
  welcomed = true;
  const v1::JobPlan plan = leases.welcome().plan();
  ToyModel model(parameters_.span(), [this] { return Compute(); });
  Batches batches(this, plan);
  ExchangeLink parameters(
      process_.get(), job_.network,
      [this](uint32_t shard) { return job_.servers[shard] == nullptr ? nullptr : &job_.servers[shard]->shard_peer(); },
      plan, {leases.welcome().shards().begin(), leases.welcome().shards().end()}, parameters_.span());
  WorkLoop loop(plan, {.model = &model,
                       .leases = &leases,
                       .batches = &batches,
                       .parameters = &parameters,
                       .activity = &activity_,
                       .metrics = &metrics_});
  const absl::Cleanup forget = [this] { loop_ = nullptr; };
  loop_ = &loop;
  if (draining_) loop.Drain();
  return loop.Run();
}

bool SimulatedWorker::Compute() {
  job_.world->Expect(activity_.waiting_for().empty(), "a worker that computes says that it waits");
  return process_->Sleep(job_.world->Between(absl::Milliseconds(1), absl::Milliseconds(20)) * slowness_);
}

}  // namespace millrace::simulation
