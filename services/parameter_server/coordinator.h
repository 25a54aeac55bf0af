// The coordinator of a job: a thread-safe shell around the ledger. It keeps the workers' connections, waits for the
// shards, carries out what the ledger decides, tells the checkpointer what to save, and knows how the job is doing.
//
//   Coordinator coordinator({.num_shards = 1, .data_addresses = data, .clock = &clock, .metrics = &metrics});
//   coordinator.Begin(plan, start, make_queue, find_start);  // once the plan is known; until then it is STARTING
//   coordinator.RegisterShard(request);                      // from each shard, again and again
//   auto worker = coordinator.Attach(hello, &connection);    // from each worker's stream
//
// A job is one run after the other. A run begins when every shard serves its plan, and ends with the job, or when a
// shard that takes part has lost its weights: then all shards go back to the newest committed version, and the workers
// come to the next run as they came to this one. Run ids fence off whatever is still under way of the run before.
//
// Threads: every method may be called from any thread. Connections and the checkpoint queue are called with the lock
// held: they must not block and must not call back. One thread of its own ticks the ledger and prepares the next run.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/checkpointer.h"
#include "services/parameter_server/coordinator_metrics.h"
#include "services/parameter_server/divergence_watch.h"
#include "services/parameter_server/ledger.h"
#include "services/parameter_server/slot_recorder.h"
#include "services/parameter_server/training_progress.h"
#include "services/parameter_server/visit_audit.h"

namespace millrace {

// The coordinator's side of one worker's stream.
class WorkerConnection {
 public:
  virtual ~WorkerConnection() = default;
  // Queues a message; the ledger bounds how many there can be.
  virtual void Send(const v1::CoordinatorMessage& message) = 0;
  // Ends the stream after what was queued. Nothing is sent afterwards.
  virtual void Close(const absl::Status& status) = 0;
};

// What a run begins from: the newest committed state of the job, or its beginning.
struct RunStart {
  uint64_t version = 0;
  std::string checkpoint_dir = {};                 // empty for the beginning
  std::vector<v1::Evaluation> validation = {};     // the history before `version`
  std::optional<RunFingerprint> fingerprint = {};  // of the run that committed it
  std::optional<v1::VisitCheck> visits = {};       // of its epoch before `version`
  bool synchronous_again = false;                  // the job is asynchronous, and had diverged before that version
  std::string optimizer_sha256 = {};               // of the optimizer's state at `version`; empty for the beginning
};

class Coordinator : public CheckpointListener {
 public:
  struct Options {
    uint32_t num_shards = 1;
    std::vector<std::string> data_addresses;  // of the replicas of the data service, for the workers
    const Clock* clock = nullptr;
    Metrics* metrics = nullptr;
    absl::Duration heartbeat_interval = absl::Milliseconds(500);
    absl::Duration tick_interval = absl::Milliseconds(20);  // infinite: only Tick() ticks
    Ledger::Limits limits = {};
    // Asks what visits there should be; VisitsExpected has the answer, later. Called with the lock held: must not
    // block. Null: visits are counted, and not checked.
    std::function<void(const v1::JobPlan& plan, const v1::VisitCheck& check)> ask_visits = nullptr;
  };
  // Called for each run, when all shards are there; the queue of the run before is gone by then.
  using MakeQueue = std::function<std::unique_ptr<CheckpointQueue>(const v1::JobPlan& plan,
                                                                   const std::vector<v1::ShardInfo>& shards)>;
  // Finds what the next run begins from; may read the disk. Called by Tick without locks held, between two queues.
  using FindStart = std::function<absl::StatusOr<RunStart>()>;

  explicit Coordinator(Options options);
  ~Coordinator() override;  // after Shutdown, and when every connection is detached

  // What the job waits for before Begin; for people.
  void SetStarting(std::string waiting_for);
  // The plan is complete but for what belongs to one run; `start` says where the first one begins. INVALID_ARGUMENT if
  // there are more shards than the parameters allow.
  absl::Status Begin(v1::JobPlan plan, RunStart start, MakeQueue make_queue, FindStart find_start);

  // A shard says that it lives and what it serves, and is told the plan of the newest run. Training begins when all of
  // them serve it. A shard that was restarted after that, or is broken, has lost its weights: the job goes back to the
  // newest committed version, or fails if a shard breaks there again and again. UNAVAILABLE before Begin and while the
  // next run is being prepared; INVALID_ARGUMENT for a shard that is not of this job; ABORTED for a process whose place
  // another one has taken.
  absl::StatusOr<v1::RegisterShardResponse> RegisterShard(const v1::RegisterShardRequest& request);

  // A worker says hello; it is welcomed when training can begin. Takes the place of an earlier connection of the same
  // name. `connection` must stay until Detach returns. INVALID_ARGUMENT without a name; UNAVAILABLE during shutdown.
  absl::StatusOr<WorkerId> Attach(const v1::Hello& hello, WorkerConnection* connection);
  // INVALID_ARGUMENT for a message that has no place here; close the connection then.
  absl::Status Receive(WorkerId worker, const v1::WorkerMessage& message);
  // The stream is over. Does nothing for a connection that was replaced or expelled.
  void Detach(WorkerId worker);

  v1::JobStatus GetStatus() const;
  // Ticks the ledger, or prepares the next run if one is due; the coordinator's own thread does so too. One thread at a
  // time.
  void Tick();
  // Ends every connection with UNAVAILABLE, refuses new ones and stops the thread. Idempotent.
  void Shutdown();
  // The job cannot go on; workers are told to finish. The first reason stays.
  void Fail(std::string reason);

  // What `ask_visits` asked, with what is expected.
  void VisitsExpected(const v1::VisitCheck& check);
  // How the replicas of the data service do, for the status.
  void DataReplicasSeen(std::vector<v1::DataReplicaStatus> replicas);

  // CheckpointListener; called by the checkpointer's thread.
  void Committed(uint64_t version, const std::string& optimizer_sha256) override;
  void CommitFailed(uint64_t version, const absl::Status& why) override;
  void Exported(uint64_t version, const std::string& weights_sha256) override;
  void ExportFailed(uint64_t version, const absl::Status& why) override;
  void Settled(uint64_t version) override;

 private:
  struct Session {
    v1::Hello hello;
    WorkerConnection* connection;
  };
  struct Registration {
    uint64_t incarnation = 0;
    v1::ShardInfo info;
    uint64_t serving_run_id = 0;
    absl::Time last_heard;
    std::deque<uint64_t> replaced;  // incarnations that were here before: the last few
  };

  void RunTicks();
  bool training() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ledger_ != nullptr; }
  absl::Status CheckShard(const v1::RegisterShardRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Where the next run begins. The ids and addresses of the shards are known from their registrations.
  void PlanRun(RunStart start) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartTrainingIfServed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ShardBroke(const v1::RegisterShardRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the run; Tick prepares the next one.
  void EndRun(std::string reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PrepareRun();
  void NoteProgress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // "shard 1 at ADDRESS, last heard 3.1 s ago" for the first shard that `late` says is; empty if there is none.
  std::string FirstShard(const std::function<bool(const Registration&)>& late) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Welcome(WorkerId id, const Session& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Warns of a worker whose gradients may have other bits than those of the first worker, or of the run resumed from.
  void CheckFingerprint(const v1::Hello& hello) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendFinish(const Session& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(std::string reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Apply(const LedgerActions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of an asynchronous job: ends the run, so that the next one is synchronous.
  bool HasDiverged(const LedgerActions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountVisits(const LedgerActions::CompletedRound& round) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReachBoundary(uint64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CompleteEvaluation(const LedgerActions::CompletedRound& round) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExportUnlessEvaluated(uint64_t version, const std::optional<RoundId>& next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishIfOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::JobStatus::State StateLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string WaitingForLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::JobStatus StatusLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  CoordinatorMetrics metrics_;

  mutable Mutex mutex_;
  CondVar stop_;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::string starting_ ABSL_GUARDED_BY(mutex_) = "the job's plan";
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;
  v1::JobPlan plan_ ABSL_GUARDED_BY(mutex_);  // of the newest run
  MakeQueue make_queue_ ABSL_GUARDED_BY(mutex_);
  FindStart find_start_ ABSL_GUARDED_BY(mutex_);
  bool run_over_ ABSL_GUARDED_BY(mutex_) = false;              // the next one is to be prepared
  std::vector<v1::ShardInfo> ranges_ ABSL_GUARDED_BY(mutex_);  // by shard; the address is empty until it registers
  std::map<uint32_t, Registration> shards_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Ledger> ledger_ ABSL_GUARDED_BY(mutex_);  // from when all shards serve the run until it ends
  Ledger::Counters past_counters_ ABSL_GUARDED_BY(mutex_);  // of the runs before
  WorkerId next_worker_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<WorkerId, Session> sessions_ ABSL_GUARDED_BY(mutex_);

  std::optional<RunFingerprint> resumed_fingerprint_ ABSL_GUARDED_BY(mutex_);
  std::optional<RunFingerprint> fingerprint_ ABSL_GUARDED_BY(mutex_);  // the first worker's

  TrainingProgress progress_ ABSL_GUARDED_BY(mutex_);
  SlotRecorder recorder_ ABSL_GUARDED_BY(mutex_);
  VisitAudit visits_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::DataReplicaStatus> data_replicas_ ABSL_GUARDED_BY(mutex_);
  DivergenceWatch divergence_ ABSL_GUARDED_BY(mutex_);
  bool synchronous_again_ ABSL_GUARDED_BY(mutex_) = false;  // from the next run on
  std::vector<v1::Evaluation> validation_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::Evaluation> test_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::Evaluation> best_test_ ABSL_GUARDED_BY(mutex_);  // if the best version is not the last
  absl::Time first_grant_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time last_progress_ ABSL_GUARDED_BY(mutex_);  // a report, or a worker that joined
  absl::Time last_round_ ABSL_GUARDED_BY(mutex_);     // completed
  std::deque<v1::Recovery> recoveries_ ABSL_GUARDED_BY(mutex_);
  uint64_t recovery_count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<absl::Time> recovering_since_ ABSL_GUARDED_BY(mutex_);  // until the first round of the new run
  // How often in a row a shard broke at this version.
  uint64_t broken_version_ ABSL_GUARDED_BY(mutex_) = 0;
  int broken_count_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time over_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time next_metrics_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::set<uint64_t> unsettled_ ABSL_GUARDED_BY(mutex_);  // versions that the checkpointer still works at
  uint64_t committed_version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t exported_version_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string weights_sha256_ ABSL_GUARDED_BY(mutex_);
  std::string optimizer_sha256_ ABSL_GUARDED_BY(mutex_);
  // Each empty once one of its kind has succeeded again: a version that fits on a disk says nothing of a checkpoint,
  // which is larger.
  std::string commit_error_ ABSL_GUARDED_BY(mutex_);
  std::string export_error_ ABSL_GUARDED_BY(mutex_);
  std::string failure_ ABSL_GUARDED_BY(mutex_);
  bool finish_sent_ ABSL_GUARDED_BY(mutex_) = false;

  // Outlives nothing above: its thread calls the listener until it is destroyed.
  std::unique_ptr<CheckpointQueue> queue_ ABSL_GUARDED_BY(mutex_);
  std::thread ticker_;
};

}  // namespace millrace
