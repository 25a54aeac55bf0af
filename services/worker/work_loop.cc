#include "services/worker/work_loop.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/random.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr absl::Duration kLeasePoll = absl::Milliseconds(200);
// The coordinator keeps a worker in two leases; more than this is not a coordinator.
constexpr size_t kMaxPendingLeases = 64;
constexpr char kInterrupted[] = "the wait for weights was interrupted";

// The weights that a lease is to be computed on.
uint64_t WeightsVersionOf(const v1::Lease& lease) { return lease.version() - lease.staleness(); }

// Weights of version v+1 exist only when everything at version v is done, and a version is evaluated before it is
// trained on.
bool ComesFirst(const v1::Lease& a, const v1::Lease& b) {
  const auto rank = [](const v1::Lease& lease) {
    return std::tuple(WeightsVersionOf(lease), lease.kind() == v1::Lease::KIND_TRAIN, lease.version(), lease.id());
  };
  return rank(a) < rank(b);
}

v1::Split SplitOf(v1::Lease::Kind kind) {
  switch (kind) {
    case v1::Lease::KIND_VALIDATION:
      return v1::SPLIT_VALIDATION;
    case v1::Lease::KIND_TEST:
      return v1::SPLIT_TEST;
    default:
      return v1::SPLIT_TRAIN;
  }
}

std::string Describe(const v1::Lease& lease) {
  switch (lease.kind()) {
    case v1::Lease::KIND_TRAIN:
      return absl::StrFormat("slots [%u, %u) of step %u", lease.begin(), lease.end(), lease.version());
    case v1::Lease::KIND_VALIDATION:
      return absl::StrFormat("validation batches [%u, %u) of version %u", lease.begin(), lease.end(), lease.version());
    default:
      return absl::StrFormat("test batches [%u, %u) of version %u", lease.begin(), lease.end(), lease.version());
  }
}

std::span<const uint8_t> Bytes(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

}  // namespace

// Adds the time of its scope to a sum, in seconds.
class WorkLoop::Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum), begin_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  double& sum_;
  const std::chrono::steady_clock::time_point begin_;
};

uint64_t WorkLoop::NoiseSeed(uint64_t seed, uint64_t step, uint32_t slot) {
  constexpr uint32_t kNoiseStream = 0x6e6f6973;  // apart from every other use of the job's seed
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), slot, kNoiseStream},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{bits[1]} << 32 | bits[0];
}

WorkLoop::WorkLoop(const v1::JobPlan& plan, const Parts& parts)
    : plan_(plan), parts_(parts), sum_(parts.model->parameter_count(), plan.spec().wire()), ahead_(plan) {}

absl::StatusOr<WorkLoop::End> WorkLoop::Run() {
  absl::StatusOr<End> end = RunUntilEnd();
  for (const v1::Lease& lease : pending_) parts_.batches->Forget(UnitsOf(lease));
  parts_.batches->Forget(ahead_.TakeGuesses());
  pending_.clear();
  return end;
}

absl::StatusOr<WorkLoop::End> WorkLoop::RunUntilEnd() {
  while (true) {
    if (stopped_) return absl::CancelledError("the worker was stopped");
    if (draining_) {
      DeclineAll("the worker is draining");
      parts_.leases->Leave();
      return End::kDrained;
    }
    if (pending_.empty()) parts_.activity->WaitingFor("a lease");
    MILLRACE_RETURN_IF_ERROR(TakeEvents(pending_.empty() ? kLeasePoll : absl::ZeroDuration()));
    if (finished_) return End::kFinished;
    if (pending_.empty()) continue;

    const v1::Lease lease = pending_.front();
    outranked_ = false;
    absl::Status status = Process(lease);
    // Leases that came meanwhile may stand before or behind it now.
    const auto same = [&](const v1::Lease& other) { return other.id() == lease.id(); };
    if (!status.ok()) {
      const bool interrupted = absl::IsCancelled(status) && status.message() == kInterrupted;
      if (!interrupted) return status;
      if (finished_) return End::kFinished;
      continue;  // it stays pending: a drain declines it, an older lease goes first
    }
    pending_.erase(std::find_if(pending_.begin(), pending_.end(), same));
  }
}

absl::Status WorkLoop::TakeEvents(absl::Duration timeout) {
  while (true) {
    MILLRACE_ASSIGN_OR_RETURN(const std::optional<LeaseLink::Event> event, parts_.leases->Next(timeout));
    if (!event.has_value()) return absl::OkStatus();
    timeout = absl::ZeroDuration();
    if (const auto* finish = std::get_if<v1::Finish>(&*event)) {
      if (finish->failed()) return absl::AbortedError(absl::StrCat("the job failed: ", finish->reason()));
      finished_ = true;
      return absl::OkStatus();
    }
    MILLRACE_RETURN_IF_ERROR(Accept(std::get<v1::Lease>(*event)));
  }
}

absl::Status WorkLoop::Accept(const v1::Lease& lease) {
  const bool train = lease.kind() == v1::Lease::KIND_TRAIN;
  const bool known = train || lease.kind() == v1::Lease::KIND_VALIDATION || lease.kind() == v1::Lease::KIND_TEST;
  const bool sound = known && lease.begin() < lease.end() && lease.id() != 0 && lease.staleness() <= lease.version() &&
                     (!train || IsSlotNode({lease.begin(), lease.end()}, plan_.spec().slots()));
  if (!sound || pending_.size() >= kMaxPendingLeases) {
    return absl::InternalError(absl::StrCat("the coordinator sent a lease that makes no sense (", Describe(lease), ", ",
                                            pending_.size(), " pending)"));
  }
  // Asked for now, so that the batches travel while an earlier lease is computed and pushed.
  const EpochAhead::Change change = ahead_.Accept(lease, UnitsOf(lease));
  if (!change.forget.empty()) parts_.batches->Forget(change.forget);
  parts_.batches->Prefetch(change.ask);
  const auto place = std::upper_bound(pending_.begin(), pending_.end(), lease, ComesFirst);
  if (place == pending_.begin()) outranked_ = true;
  pending_.insert(place, lease);
  return absl::OkStatus();
}

std::vector<BatchKey> WorkLoop::UnitsOf(const v1::Lease& lease) const {
  std::vector<BatchKey> units;
  units.reserve(lease.end() - lease.begin());
  for (uint32_t i = lease.begin(); i < lease.end(); ++i) {
    if (lease.kind() == v1::Lease::KIND_TRAIN) {
      units.push_back(
          {v1::SPLIT_TRAIN, lease.version() / plan_.steps_per_epoch(), lease.version() % plan_.steps_per_epoch(), i});
    } else {
      units.push_back({SplitOf(lease.kind()), 0, i, 0});
    }
  }
  return units;
}

void WorkLoop::Decline(const v1::Lease& lease, std::string_view reason, bool weights_gone) {
  parts_.batches->Forget(UnitsOf(lease));
  parts_.leases->Decline(lease.id(), reason, weights_gone);
  parts_.metrics->declined_leases.Increment();
}

void WorkLoop::DeclineAll(std::string_view reason) {
  for (const v1::Lease& lease : pending_) Decline(lease, reason, /*weights_gone=*/false);
  pending_.clear();
}

absl::Status WorkLoop::Process(const v1::Lease& lease) {
  Times times;
  std::optional<uint64_t> weights_version;
  {
    Stopwatch watch(times.weights);
    MILLRACE_ASSIGN_OR_RETURN(weights_version, AwaitWeights(lease));
  }
  if (!weights_version.has_value()) {
    Decline(lease, "the weights have moved past its version", /*weights_gone=*/true);
    return absl::OkStatus();
  }
  parts_.metrics->version.Set(static_cast<double>(*weights_version));
  const bool train = lease.kind() == v1::Lease::KIND_TRAIN;
  if (train) sum_.Begin(plan_.spec().slots());
  v1::Report report;
  report.set_lease_id(lease.id());
  uint64_t step_samples = 0, samples = 0;
  for (const BatchKey& unit : UnitsOf(lease)) {
    v1::Batch batch;
    {
      Stopwatch watch(times.data);
      MILLRACE_ASSIGN_OR_RETURN(batch, parts_.batches->Get(unit, [this](std::string_view what) {
        return Waiting(what, /*interruptible=*/false);
      }));
    }
    Stopwatch watch(times.compute);
    parts_.activity->Doing(absl::StrCat("computing ", Describe(lease)));
    samples += batch.samples();
    MILLRACE_RETURN_IF_ERROR(ComputeUnit(lease, unit, std::move(batch), report, step_samples));
  }
  // The next lease has often arrived by now; its batches can travel during the push.
  MILLRACE_RETURN_IF_ERROR(TakeEvents(absl::ZeroDuration()));
  if (train) {
    Stopwatch watch(times.push);
    MILLRACE_RETURN_IF_ERROR(PushGradient(lease, step_samples, *weights_version));
  }
  report.set_data_wait_seconds(times.data);
  report.set_weights_wait_seconds(times.weights);
  report.set_compute_seconds(times.compute);
  report.set_push_seconds(times.push);
  parts_.leases->Report(report);

  parts_.metrics->finished_leases.Increment();
  parts_.metrics->Samples(lease.kind()).Increment(static_cast<double>(samples));
  if (train) {
    parts_.metrics->data_seconds.Observe(times.data);
    parts_.metrics->weights_seconds.Observe(times.weights);
    parts_.metrics->compute_seconds.Observe(times.compute);
    parts_.metrics->push_seconds.Observe(times.push);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<uint64_t>> WorkLoop::AwaitWeights(const v1::Lease& lease) {
  const uint64_t version = WeightsVersionOf(lease);
  const auto waiting = [this](std::string_view what) { return Waiting(what, /*interruptible=*/true); };
  if (lease.newest()) return parts_.parameters->AwaitNewest(version, waiting);
  MILLRACE_ASSIGN_OR_RETURN(const ParameterLink::Weights weights, parts_.parameters->AwaitVersion(version, waiting));
  if (weights == ParameterLink::Weights::kMovedPast) return std::nullopt;
  return version;
}

absl::Status WorkLoop::ComputeUnit(const v1::Lease& lease, const BatchKey& unit, v1::Batch batch, v1::Report& report,
                                   uint64_t& step_samples) {
  v1::UnitResult& result = *report.add_results();
  BatchResult computed;
  if (lease.kind() == v1::Lease::KIND_TRAIN) {
    step_samples = batch.step_samples();
    result.set_visits(batch.visits());
    MILLRACE_ASSIGN_OR_RETURN(
        computed, parts_.model->ComputeGradient(Bytes(batch.images()), Bytes(batch.labels()),
                                                NoiseSeed(plan_.spec().seed(), lease.version(), unit.slot)));
    result.set_unit(unit.slot);
    result.set_checksum(sum_.Add(unit.slot, parts_.model->gradient()));
  } else {
    MILLRACE_ASSIGN_OR_RETURN(computed, parts_.model->Evaluate(Bytes(batch.images()), Bytes(batch.labels())));
    result.set_unit(static_cast<uint32_t>(unit.step));
  }
  result.set_samples(computed.samples);
  result.set_loss_sum(computed.loss_sum);
  result.set_correct(computed.correct);
  return absl::OkStatus();
}

absl::Status WorkLoop::PushGradient(const v1::Lease& lease, uint64_t step_samples, uint64_t weights_version) {
  const GradientPush push{.step = lease.version(),
                          .slots = {lease.begin(), lease.end()},
                          .samples = step_samples,
                          .weights_version = weights_version,
                          .gradient = sum_.Finish()};
  return parts_.parameters->Push(push,
                                 [this](std::string_view what) { return Waiting(what, /*interruptible=*/false); });
}

absl::Status WorkLoop::Waiting(std::string_view what, bool interruptible) {
  parts_.activity->WaitingFor(what);
  if (stopped_) return absl::CancelledError("the worker was stopped");
  // Also notices a failed job or a lost coordinator, which ends any wait.
  MILLRACE_RETURN_IF_ERROR(TakeEvents(absl::ZeroDuration()));
  if (finished_ || (interruptible && (draining_ || outranked_))) return absl::CancelledError(kInterrupted);
  return absl::OkStatus();
}

}  // namespace millrace
