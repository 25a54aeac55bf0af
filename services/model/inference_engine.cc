#include "services/model/inference_engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/thread_priority.h"
#include "services/model/retry_hint.h"

namespace millrace {
namespace {

// A client that waited for its answer takes longer than this to ask again; a request that was there already does not.
constexpr absl::Duration kOnTheHeels = absl::Microseconds(30);

// The last part of a call's time: who cancels it then has no time left, who does so earlier has changed his mind.
// Large, for our count of the time begins when the call is read: on busy processors long after the client's. Who asks
// twice and cancels the slower call in this part counts as late too.
constexpr double kNearDeadline = 0.5;

// How long batches go before what nobody waits for.
constexpr absl::Duration kChorePatience = absl::Milliseconds(20);

Lane& LaneOf(const LoadedVersion& version, const InferenceRequest& request) {
  const bool floats = request.kind == InferenceRequest::Kind::kFloats;
  if (request.deterministic) {
    return version.lane(floats ? LoadedVersion::LaneKind::kFloatsAlone : LoadedVersion::LaneKind::kAlone);
  }
  if (floats) return version.lane(LoadedVersion::LaneKind::kFloats);
  // Apart, so that raw rows do not wait for a neighbour's picture to be decoded.
  if (request.kind == InferenceRequest::Kind::kImage) return version.lane(LoadedVersion::LaneKind::kImages);
  return version.lane(LoadedVersion::LaneKind::kRaw);
}

absl::Status StatusOf(const Batcher::Refusal& refusal) {
  absl::Status status;
  switch (refusal.reason) {
    case Batcher::Refusal::Reason::kLate:
      status = absl::DeadlineExceededError("the request cannot be computed before its deadline");
      break;
    case Batcher::Refusal::Reason::kRequests:
    case Batcher::Refusal::Reason::kRows:
    case Batcher::Refusal::Reason::kBytes:
      status = absl::ResourceExhaustedError(
          absl::StrCat("too much waits already (", std::string(Name(refusal.reason)), "); try again, or elsewhere"));
      break;
  }
  SetRetryAfter(status, refusal.retry_after);
  return status;
}

}  // namespace

InferenceEngine::InferenceEngine(const Batcher::Limits& limits, const Clock& clock)
    : limits_(limits), clock_(clock), batcher_(limits), executors_(static_cast<size_t>(limits.executors)) {
  for (Executor& executor : executors_) executor.thread = std::thread([this, &executor] { RunExecutor(executor); });
}

InferenceEngine::~InferenceEngine() {
  Finished finished;
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    work_.SignalAll();
    chore_done_.SignalAll();
    std::vector<std::shared_ptr<EngineCall>> calls;
    for (const auto& [ticket, call] : calls_) calls.push_back(call);
    for (const std::shared_ptr<EngineCall>& call : calls) {
      if (call->fault.ok()) call->fault = absl::UnavailableError("the model service is shutting down");
      FinishIfOver(call, finished);
    }
  }
  Answer(finished);
  for (Executor& executor : executors_) executor.thread.join();
}

InferenceEngine::Ticket InferenceEngine::Infer(std::shared_ptr<const LoadedVersion> version,
                                               const InferenceRequest& request, InferenceDone done) {
  auto call = std::make_shared<EngineCall>();
  call->version = std::move(version);
  call->request = request;
  call->done = std::move(done);
  call->start = clock_.Now();
  call->request.deadline = std::min(request.deadline, call->start + kWaitMax);
  call->version->CountRequest();
  call->fault = CheckRequest(call->version->info(), request);
  if (!call->fault.ok()) {
    Answer({std::move(call)});
    return 0;
  }
  call->answer.rows = call->rows_left = request.kind == InferenceRequest::Kind::kImage ? 1 : request.rows;

  Finished finished;
  std::unique_ptr<BatchJob> job;
  bool idle = false;
  bool refused = false;
  {
    MutexLock lock(&mutex_);
    call->ticket = ++tickets_;
    const bool quiet = Quiet(call->start);
    idle = batcher_.idle();
    call->fault = Admit(call);
    refused = !call->fault.ok();
    if (refused) {
      finished.push_back(call);
    } else if (quiet && request.kind != InferenceRequest::Kind::kImage && request.rows <= limits_.batch_rows) {
      job = Take(finished);
    } else if (batcher_.HasWork()) {
      work_.Signal();
    }
  }
  // While more is asked than can be computed, the executors' time is worth more than an early refusal.
  if (idle || refused) AvoidInterrupting(!idle);
  const Ticket ticket = call->ticket;
  call.reset();
  Answer(finished);
  if (job != nullptr) Run(*job);
  return ticket;
}

bool InferenceEngine::Quiet(absl::Time now) const {
  return busy_ == 0 && batcher_.waiting_rows() == 0 && now - quiet_since_ >= kOnTheHeels;
}

absl::Status InferenceEngine::Admit(const std::shared_ptr<EngineCall>& call) {
  if (stop_) return absl::UnavailableError("the model service is shutting down");
  const std::optional<Batcher::Refusal> refusal =
      batcher_.Admit({.id = call->ticket,
                      .lane = &LaneOf(*call->version, call->request),
                      .rows = call->rows_left,
                      .row_bytes = RowBytes(call->version->info(), call->request),
                      .deadline = call->request.deadline},
                     call->start);
  if (refusal) {
    call->version->series().CountRejected(refusal->reason);
    return StatusOf(*refusal);
  }
  call->admitted = true;
  call->version->series().ChangeInFlight(1);
  calls_[call->ticket] = call;
  return absl::OkStatus();
}

void InferenceEngine::Cancel(Ticket ticket) {
  Finished finished;
  {
    MutexLock lock(&mutex_);
    const auto found = calls_.find(ticket);
    if (found == calls_.end()) return;
    const std::shared_ptr<EngineCall> call = found->second;
    if (call->fault.ok()) call->fault = absl::CancelledError("the client cancelled the request");
    FinishIfOver(call, finished);
  }
  Answer(finished);
}

void InferenceEngine::FinishIfOver(const std::shared_ptr<EngineCall>& call, Finished& finished) {
  if (!call->fault.ok()) {
    call->unwanted = true;
    Close(*call);
  }
  // What runs reads the caller's input, so its end is waited for.
  if (call->running_slices > 0 || (call->fault.ok() && call->rows_left > 0)) return;
  Close(*call);
  call->version->series().ChangeInFlight(-1);
  calls_.erase(call->ticket);
  finished.push_back(call);
}

void InferenceEngine::Close(const EngineCall& call) {
  const absl::Time now = clock_.Now();
  // A client gives up at its deadline, which is before ours: a call's way here does not count.
  const absl::Time near = call.request.deadline - (call.request.deadline - call.start) * kNearDeadline;
  const bool given_up = absl::IsCancelled(call.fault) && now >= near;
  const bool late = given_up || absl::IsDeadlineExceeded(call.fault) || now >= call.request.deadline;
  if (call.fault.ok() || late) batcher_.ObserveEnd(call.ticket, late);
  batcher_.Close(call.ticket);
}

std::unique_ptr<BatchJob> InferenceEngine::Take(Finished& finished) {
  const absl::Time now = clock_.Now();
  Batcher::Decision decision = batcher_.Next(now);
  for (const Batcher::Id id : decision.expired) {
    const std::shared_ptr<EngineCall> call = calls_.at(id);
    call->fault = absl::DeadlineExceededError("the deadline passed while the request waited for an executor");
    FinishIfOver(call, finished);
  }
  if (!decision.batch) return nullptr;
  ++busy_;
  auto job = std::make_unique<BatchJob>();
  job->batch = *std::move(decision.batch);
  job->taken = now;
  job->parts.reserve(job->batch.slices.size());
  for (const Batcher::Slice& slice : job->batch.slices) {
    const std::shared_ptr<EngineCall>& call = calls_.at(slice.id);
    ++call->running_slices;
    if (slice.first_row == 0) {
      call->answer.queue = now - call->start;
      // Its batches write side by side.
      if (slice.rows < call->answer.rows) {
        call->answer.values.resize(call->answer.rows * call->version->info().values_per_row());
      }
    }
    job->parts.push_back({.call = call, .first_row = slice.first_row, .rows = slice.rows});
  }
  if (batcher_.HasWork()) work_.Signal();  // more than one batch
  return job;
}

void InferenceEngine::RunExecutor(Executor& executor) {
  for (;;) {
    Finished finished;
    std::unique_ptr<BatchJob> job;
    std::function<void()> chore;
    {
      MutexLock lock(&mutex_);
      while (!stop_ && executor.chore == nullptr && !batcher_.HasWork()) work_.Wait(&mutex_);
      if (stop_) return;
      if (executor.chore != nullptr && (!batcher_.HasWork() || clock_.Now() >= executor.chore_due)) {
        chore = std::exchange(executor.chore, nullptr);
      } else {
        job = Take(finished);
      }
    }
    Answer(finished);
    if (chore != nullptr) chore();
    if (job != nullptr) Run(*job);
  }
}

void InferenceEngine::Run(BatchJob& job) {
  job.Compute(clock_);
  Finished finished;
  {
    MutexLock lock(&mutex_);
    Complete(job, finished);
    // The thread may be a caller's, which does not go on with what came meanwhile.
    if (batcher_.HasWork()) work_.Signal();
  }
  Answer(finished);
  MutexLock lock(&mutex_);
  --busy_;
  quiet_since_ = clock_.Now();
  // With what it takes to answer: until then this thread computes nothing else.
  if (job.rows == job.batch.rows) job.batch.lane->time.Observe(job.rows, quiet_since_ - job.taken);
}

void InferenceEngine::Complete(BatchJob& job, Finished& finished) {
  batcher_.Finish(job.batch);
  for (const BatchJob::Part& part : job.parts) {
    EngineCall& call = *part.call;
    --call.running_slices;
    call.rows_left -= part.rows;
    if (call.fault.ok()) call.fault = part.fault;
    call.answer.batch_wait = std::max(call.answer.batch_wait, job.computing - job.taken);
    call.answer.compute += job.compute;
    call.answer.batch_rows = std::max(call.answer.batch_rows, job.rows);
    FinishIfOver(part.call, finished);
  }
}

void InferenceEngine::Answer(const Finished& finished) {
  for (const std::shared_ptr<EngineCall>& call : finished) {
    VersionSeries& series = call->version->series();
    const absl::Time now = clock_.Now();
    series.CountRequest(call->fault.code(), now - call->start);
    if (observer_) observer_(*call->version, call->request, call->fault, call->answer);
    if (call->fault.ok()) {
      call->version->statistics()->CountAnswer(call->answer, now - call->start, now);
      series.ObserveParts(call->answer.queue, call->answer.batch_wait, call->answer.compute);
      call->done(std::move(call->answer));
    } else {
      call->version->statistics()->CountFailure(now - call->start);
      call->done(call->fault);
    }
  }
}

void InferenceEngine::Warm(const std::shared_ptr<const LoadedVersion>& version) {
  for (Executor& executor : executors_) {
    for (uint32_t rows = 1; rows <= limits_.batch_rows; rows *= 2) {
      for (const bool warm : {false, true}) {
        RunOn(executor, [this, version, rows, warm] { WarmSize(*version, rows, warm); });
      }
    }
  }
}

void InferenceEngine::RunOn(Executor& executor, std::function<void()> chore) {
  const auto done = std::make_shared<bool>(false);
  MutexLock lock(&mutex_);
  executor.chore = [this, chore = std::move(chore), done] {
    chore();
    MutexLock lock(&mutex_);
    *done = true;
    chore_done_.SignalAll();
  };
  executor.chore_due = clock_.Now() + kChorePatience;
  work_.SignalAll();
  while (!*done && !stop_) chore_done_.Wait(&mutex_);
}

void InferenceEngine::WarmSize(const LoadedVersion& version, uint32_t rows, bool learn) {
  const std::vector<uint8_t> pixels(rows * version.info().input.bytes());
  const absl::Time start = clock_.Now();
  if (!version.predictor().Predict(pixels, rows).ok() || !learn) return;
  const absl::Duration took = clock_.Now() - start;
  MutexLock lock(&mutex_);
  for (const auto kind :
       {LoadedVersion::LaneKind::kRaw, LoadedVersion::LaneKind::kFloats, LoadedVersion::LaneKind::kImages}) {
    version.lane(kind).time.Observe(rows, took);
  }
  if (rows > 1) return;
  for (const auto kind : {LoadedVersion::LaneKind::kAlone, LoadedVersion::LaneKind::kFloatsAlone}) {
    version.lane(kind).time.Observe(rows, took);
  }
}

int InferenceEngine::in_flight() const {
  MutexLock lock(&mutex_);
  return static_cast<int>(batcher_.open());
}

}  // namespace millrace
