#include "services/parameter_server/coordinator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "services/parameter_server/model_selection.h"
#include "services/parameter_server/schedule.h"

namespace millrace {
namespace {

constexpr size_t kWorkerNameMax = 256;
constexpr absl::Duration kMetricsInterval = absl::Milliseconds(100);

bool IsEvaluationOf(const std::optional<RoundId>& round, uint64_t version) {
  return round.has_value() && !round->is_train() && round->version == version;
}

}  // namespace

Coordinator::Coordinator(Options options)
    : options_(std::move(options)),
      metrics_(options_.metrics),
      last_progress_(options_.clock->Now()),
      last_round_(last_progress_) {
  if (options_.tick_interval != absl::InfiniteDuration()) ticker_ = std::thread([this] { RunTicks(); });
}

Coordinator::~Coordinator() {
  Shutdown();
  // The queue's thread may be waiting for our lock: end it without holding that.
  std::unique_ptr<CheckpointQueue> queue;
  {
    MutexLock lock(&mutex_);
    queue = std::move(queue_);
  }
}

void Coordinator::Shutdown() {
  {
    MutexLock lock(&mutex_);
    shut_down_ = true;
    stop_.SignalAll();
    if (queue_ != nullptr) queue_->Stop();
    for (const auto& [id, session] : std::exchange(sessions_, {})) {
      session.connection->Close(absl::UnavailableError("the parameter server is shutting down"));
    }
  }
  if (ticker_.joinable()) ticker_.join();
}

void Coordinator::RunTicks() {
  for (;;) {
    {
      MutexLock lock(&mutex_);
      if (!shut_down_) stop_.WaitWithTimeout(&mutex_, options_.tick_interval);
      if (shut_down_) return;
    }
    Tick();
  }
}

void Coordinator::Tick() {
  PrepareRun();
  MutexLock lock(&mutex_);
  const absl::Time now = options_.clock->Now();
  if (training()) Apply(ledger_->Tick(now));
  if (now < next_metrics_) return;
  next_metrics_ = now + kMetricsInterval;
  metrics_.Update(StatusLocked());
}

void Coordinator::SetStarting(std::string waiting_for) {
  MutexLock lock(&mutex_);
  starting_ = std::move(waiting_for);
}

// --- Workers ---

absl::StatusOr<WorkerId> Coordinator::Attach(const v1::Hello& hello, WorkerConnection* connection) {
  if (hello.worker().empty() || hello.worker().size() > kWorkerNameMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a worker's name must have 1 to ", kWorkerNameMax, " bytes, not ", hello.worker().size()));
  }
  MutexLock lock(&mutex_);
  if (shut_down_) return absl::UnavailableError("the parameter server is shutting down");
  if (!failure_.empty() && !training()) return absl::AbortedError(absl::StrCat("the job failed: ", failure_));
  for (auto session = sessions_.begin(); session != sessions_.end(); ++session) {
    if (session->second.hello.worker() != hello.worker()) continue;
    const bool same_life = session->second.hello.incarnation() == hello.incarnation();
    LogWarning("worker connected again, its earlier connection is closed",
               {{"worker", hello.worker()}, {"same_process", same_life}});
    session->second.connection->Close(absl::AbortedError("another connection took this worker's place"));
    const WorkerId id = session->first;
    sessions_.erase(session);
    if (training()) Apply(ledger_->WorkerLeft(id, options_.clock->Now()));
    break;
  }
  const WorkerId id = next_worker_++;
  const Session& session = sessions_[id] = {hello, connection};
  LogInfo("worker joined", {{"worker", hello.worker()}, {"process", hello.process_id()}});
  if (training()) Welcome(id, session);
  return id;
}

void Coordinator::CheckFingerprint(const v1::Hello& hello) {
  RunFingerprint now{hello.torch_version(), hello.cpu_capability(), hello.threads()};
  if (!hello.device().empty()) now.device = hello.device();
  const bool first = !fingerprint_.has_value();
  if (first) fingerprint_ = now;
  const RunFingerprint expected = first ? resumed_fingerprint_.value_or(now) : *fingerprint_;
  if (now == expected) return;
  metrics_.CountFingerprintMismatch();
  LogWarning(first ? "RESUMING UNDER ANOTHER FINGERPRINT: the final weights may differ in their last bits from those "
                     "of an uninterrupted run"
                   : "WORKER WITH ANOTHER FINGERPRINT: its gradients may differ in their last bits from those of the "
                     "others, so this run may not be reproducible",
             {{"worker", hello.worker()},
              {"torch", now.torch_version},
              {"torch_expected", expected.torch_version},
              {"cpu", now.cpu_capability},
              {"cpu_expected", expected.cpu_capability},
              {"threads", now.threads},
              {"threads_expected", expected.threads},
              {"device", now.device},
              {"device_expected", expected.device}});
}

void Coordinator::Welcome(WorkerId id, const Session& session) {
  CheckFingerprint(session.hello);
  v1::CoordinatorMessage message;
  v1::Welcome& welcome = *message.mutable_welcome();
  *welcome.mutable_plan() = plan_;
  welcome.mutable_shards()->Assign(ranges_.begin(), ranges_.end());
  welcome.mutable_data_addresses()->Assign(options_.data_addresses.begin(), options_.data_addresses.end());
  welcome.set_heartbeat_interval_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat_interval)));
  session.connection->Send(message);
  last_progress_ = options_.clock->Now();
  if (finish_sent_) {
    SendFinish(session);
  } else {
    Apply(ledger_->WorkerJoined(id, session.hello.worker(), options_.clock->Now()));
  }
}

absl::Status Coordinator::Receive(WorkerId worker, const v1::WorkerMessage& message) {
  MutexLock lock(&mutex_);
  if (!sessions_.contains(worker) || !training()) return absl::OkStatus();  // closing, or not welcomed yet
  const absl::Time now = options_.clock->Now();
  switch (message.message_case()) {
    case v1::WorkerMessage::kHeartbeat:
      Apply(ledger_->Heard(worker, message.heartbeat().waiting_for(), now));
      return absl::OkStatus();
    case v1::WorkerMessage::kReport:
      metrics_.CountReport(message.report());
      last_progress_ = now;
      Apply(ledger_->Reported(worker, message.report(), now));
      return absl::OkStatus();
    case v1::WorkerMessage::kDecline:
      LogDebug("lease declined",
               {{"worker", sessions_.at(worker).hello.worker()}, {"reason", message.decline().reason()}});
      Apply(ledger_->Declined(worker, message.decline().lease_id(), now, message.decline().weights_gone()));
      return absl::OkStatus();
    case v1::WorkerMessage::kLeave:
      Apply(ledger_->WorkerLeaving(worker, now));
      return absl::OkStatus();
    case v1::WorkerMessage::kHello:
      return absl::InvalidArgumentError("hello must come first, and once");
    default:
      return absl::InvalidArgumentError("a message of a kind this coordinator does not know");
  }
}

void Coordinator::Detach(WorkerId worker) {
  MutexLock lock(&mutex_);
  const auto session = sessions_.find(worker);
  if (session == sessions_.end()) return;
  LogInfo("worker left", {{"worker", session->second.hello.worker()}});
  sessions_.erase(session);
  if (training()) Apply(ledger_->WorkerLeft(worker, options_.clock->Now()));
}

void Coordinator::SendFinish(const Session& session) {
  v1::CoordinatorMessage message;
  message.mutable_finish()->set_failed(!failure_.empty());
  message.mutable_finish()->set_reason(failure_);
  session.connection->Send(message);
}

// --- What the ledger decides ---

void Coordinator::Apply(const LedgerActions& actions) {
  for (const std::string& warning : actions.warnings) LogWarning(warning);
  for (const std::string& corruption : actions.corruptions) LogError("CHECKSUM MISMATCH", {{"what", corruption}});
  for (const LedgerActions::CompletedRound& round : actions.completed) {
    NoteProgress();
    if (!round.id.is_train()) continue;
    progress_.StepCompleted(round.sums, round.took);
    // On whatever weights a worker has, a step cannot be made again.
    if (!plan_.spec().asynchrony().unbounded()) recorder_.Add(round.checksums);
    CountVisits(round);
  }
  if (HasDiverged(actions)) return;
  for (const uint64_t version : actions.boundaries) ReachBoundary(version);
  for (const LedgerActions::CompletedRound& round : actions.completed) {
    if (!round.id.is_train()) CompleteEvaluation(round);
  }
  for (const LedgerActions::Expulsion& expulsion : actions.expelled) {
    const auto session = sessions_.find(expulsion.worker);
    if (session == sessions_.end()) continue;
    LogError("worker expelled", {{"worker", session->second.hello.worker()}, {"reason", expulsion.reason}});
    session->second.connection->Close(absl::InvalidArgumentError(expulsion.reason));
    sessions_.erase(session);
  }
  for (const LedgerActions::Grant& grant : actions.grants) {
    if (finish_sent_) break;  // the job failed
    first_grant_ = std::min(first_grant_, options_.clock->Now());
    const auto session = sessions_.find(grant.worker);
    if (session == sessions_.end()) continue;
    v1::CoordinatorMessage message;
    *message.mutable_lease() = grant.lease;
    session->second.connection->Send(message);
  }
  FinishIfOver();
}

bool Coordinator::HasDiverged(const LedgerActions& actions) {
  for (const LedgerActions::CompletedRound& round : actions.completed) {
    if (!round.id.is_train() || StepsAhead(plan_) == 0) continue;
    if (!divergence_.Diverged(round.sums.loss / static_cast<double>(round.sums.samples))) continue;
    synchronous_again_ = true;
    EndRun(absl::StrCat("the loss ran away at step ", round.id.version, " with gradients up to ", StepsAhead(plan_),
                        " steps old; it goes on synchronously"));
    return true;
  }
  return false;
}

void Coordinator::ReachBoundary(uint64_t version) {
  unsettled_.insert(version);
  queue_->Commit(version, {.validation = validation_,
                           .fingerprint = fingerprint_.value_or(RunFingerprint()),
                           .slot_checksums = recorder_.Before(version),
                           .visits = visits_.EpochSoFar(version)});
  if (IsEpochEnd(plan_, version)) {
    ExportUnlessEvaluated(version, NextRound(plan_, {v1::Lease::KIND_TRAIN, version - 1}));
  }
}

void Coordinator::CompleteEvaluation(const LedgerActions::CompletedRound& round) {
  const v1::Evaluation evaluation = MakeEvaluation(plan_, round.id, round.sums);
  const bool validation = round.id.kind == v1::Lease::KIND_VALIDATION;
  LogInfo(validation ? "epoch validated" : "tested",
          {{"epoch", evaluation.epoch()},
           {"version", evaluation.version()},
           {"loss", evaluation.loss()},
           evaluation.has_accuracy() ? LogField("accuracy", evaluation.accuracy()) : LogField("accuracy", "none"),
           {"train_loss", progress_.loss()}});
  if (validation) {
    validation_.push_back(evaluation);
    const v1::Evaluation* const best = BestOf(plan_.spec(), validation_);
    if (best != nullptr && best->version() == evaluation.version()) queue_->NoteBest(evaluation);
  } else if (round.id.version < ledger_->version()) {
    best_test_ = evaluation;  // of an older version, which was exported when it was the newest
    return;
  } else {
    test_ = evaluation;
  }
  ExportUnlessEvaluated(round.id.version, NextRound(plan_, round.id, validation_));
}

// Exports `version`, an epoch end, unless the round to come next is an evaluation of it.
void Coordinator::ExportUnlessEvaluated(uint64_t version, const std::optional<RoundId>& next) {
  if (IsEvaluationOf(next, version)) return;
  unsettled_.insert(version);
  if (plan_.spec().publish_best()) {
    const v1::Evaluation* const best = BestOf(plan_.spec(), validation_);
    if (best == nullptr || best->version() != version) return queue_->Skip(version);
  }
  std::optional<v1::Evaluation> validation, test;
  if (!validation_.empty() && validation_.back().version() == version) validation = validation_.back();
  if (test_.has_value() && test_->version() == version) test = test_;
  queue_->Export(version, std::move(validation), std::move(test));
}

// Not before the last version is safe: until then the workers may be needed again.
void Coordinator::FinishIfOver() {
  if (!failure_.empty() || !ledger_->finished() || !unsettled_.empty() || finish_sent_) return;
  // A job that stops early learns which version is its last when that one's checkpoint has been tried already.
  if (committed_version_ != ledger_->version() && !commit_error_.empty()) {
    return FailLocked(absl::StrCat("the last checkpoint could not be written: ", commit_error_));
  }
  over_ = options_.clock->Now();
  LogInfo("job done", {{"version", ledger_->version()}, {"weights_sha256", weights_sha256_}});
  finish_sent_ = true;
  for (const auto& [id, session] : sessions_) SendFinish(session);
}

void Coordinator::Fail(std::string reason) {
  MutexLock lock(&mutex_);
  FailLocked(std::move(reason));
}

void Coordinator::FailLocked(std::string reason) {
  if (!failure_.empty()) return;
  LogError("JOB FAILED", {{"reason", reason}});
  failure_ = std::move(reason);
  over_ = std::min(over_, options_.clock->Now());
  if (finish_sent_) return;
  finish_sent_ = true;
  for (const auto& [id, session] : sessions_) {
    SendFinish(session);
    // One that was not welcomed yet listens to nothing else.
    if (!training()) session.connection->Close(absl::AbortedError(absl::StrCat("the job failed: ", failure_)));
  }
}

// --- What the checkpointer tells ---

void Coordinator::Committed(uint64_t version, const std::string& optimizer_sha256) {
  MutexLock lock(&mutex_);
  commit_error_.clear();
  committed_version_ = version;
  recorder_.Committed(version);
  optimizer_sha256_ = optimizer_sha256;
}

void Coordinator::CommitFailed(uint64_t version, const absl::Status& why) {
  MutexLock lock(&mutex_);
  commit_error_ = absl::StrCat("checkpoint of version ", version, ": ", why.message());
  if (!IsFinalVersion(plan_, version)) return;
  FailLocked(absl::StrCat("the last checkpoint could not be written: ", why.message()));
}

void Coordinator::Exported(uint64_t version, const std::string& weights_sha256) {
  MutexLock lock(&mutex_);
  export_error_.clear();
  if (version < exported_version_) return;  // the job went back, and exports it again
  exported_version_ = version;
  weights_sha256_ = weights_sha256;
}

void Coordinator::ExportFailed(uint64_t version, const absl::Status& why) {
  MutexLock lock(&mutex_);
  export_error_ = absl::StrCat("export of version ", version, ": ", why.message());
  if (!IsFinalVersion(plan_, version)) return;
  FailLocked(absl::StrCat("the last version could not be exported: ", why.message()));
}

void Coordinator::Settled(uint64_t version) {
  MutexLock lock(&mutex_);
  unsettled_.erase(version);
  if (training()) Apply(ledger_->BoundarySettled(version, options_.clock->Now()));
}

}  // namespace millrace
