// Carries weights from the shards to disk: training checkpoints, committed by their manifest, and servable versions for
// the model service. Works in the background; training goes on meanwhile.
//
// A version that a checkpoint is due at goes through
//   Commit:  shards save their snapshots -> digests -> manifest.json -> older checkpoints pruned, but for the best one
//   Export:  (epoch ends only, once evaluated) weights fetched -> <output>/models/<name>/<version>/; or Skip
//   the shards release their snapshots -> Settled
// A step that fails (a full disk) is reported and logged, leaves nothing half-written, and the next version tries
// again; the last version of the job is tried a few times. Training does not stop for it. A checkpointer belongs to one
// run.
//
// <output>/best.json names the version that is the best in validation so far, for scripts and people.
//
// Threads: Commit, Export, Skip, NoteBest and Stop from any thread; they return at once. The listener is called on the
// checkpointer's own thread, without locks held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "millrace/v1/coordinator.pb.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "services/parameter_server/checkpoint_manifest.h"
#include "services/parameter_server/checkpoint_store.h"
#include "services/parameter_server/shard_fleet.h"

namespace millrace {

class Metrics;

class CheckpointListener {
 public:
  virtual ~CheckpointListener() = default;
  virtual void Committed(uint64_t version, const std::string& optimizer_sha256) = 0;
  virtual void CommitFailed(uint64_t version, const absl::Status& why) = 0;
  virtual void Exported(uint64_t version, const std::string& weights_sha256) = 0;
  virtual void ExportFailed(uint64_t version, const absl::Status& why) = 0;
  // Nothing more will be done for this version; its snapshots are released.
  virtual void Settled(uint64_t version) = 0;
};

// What the coordinator asks for.
class CheckpointQueue {
 public:
  virtual ~CheckpointQueue() = default;
  // `validation` is the history before `version`.
  virtual void Commit(uint64_t version, std::vector<v1::Evaluation> validation, RunFingerprint fingerprint) = 0;
  // Once for every epoch end, after Commit. The version that a run resumed from is exported without Commit.
  virtual void Export(uint64_t version, std::optional<v1::Evaluation> validation,
                      std::optional<v1::Evaluation> test) = 0;
  // Instead of Export: the version is not to be served.
  virtual void Skip(uint64_t version) = 0;
  // Its version is the best so far. Comes before the Export or Skip of that version.
  virtual void NoteBest(const v1::Evaluation& validation) = 0;
  // Gives up what is queued and in progress; the listener hears no more of it.
  virtual void Stop() = 0;
};

class Checkpointer : public CheckpointQueue {
 public:
  struct Options {
    v1::JobPlan plan;
    size_t keep = 3;             // committed checkpoints that stay
    Metrics* metrics = nullptr;  // required
  };

  // Store and listener must outlive the checkpointer; nobody else uses the store meanwhile.
  Checkpointer(Options options, CheckpointStore* store, std::unique_ptr<ShardFleet> fleet,
               CheckpointListener* listener);
  // Stops and waits for the thread.
  ~Checkpointer() override;

  void Commit(uint64_t version, std::vector<v1::Evaluation> validation, RunFingerprint fingerprint) override;
  void Export(uint64_t version, std::optional<v1::Evaluation> validation,
              std::optional<v1::Evaluation> test) override;
  void Skip(uint64_t version) override;
  void NoteBest(const v1::Evaluation& validation) override;
  void Stop() override;

 private:
  struct Task {
    enum Kind { kCommit, kExport, kSkip, kNoteBest } kind;
    uint64_t version;
    std::vector<v1::Evaluation> history;       // of a commit
    RunFingerprint fingerprint;                // of a commit
    std::optional<v1::Evaluation> validation;  // of an export, or the best
    std::optional<v1::Evaluation> test;
  };

  void Push(Task task);
  void Run();
  void RunCommit(const Task& task);
  void RunExport(const Task& task);
  void WriteBest(const v1::Evaluation& best);
  void Settle(uint64_t version, bool committed);
  bool stopping() const;
  // Tries `attempt`, for the job's last version more than once, and then for as long as a shard is away.
  template <typename T, typename Fn>
  absl::StatusOr<T> Try(uint64_t version, Fn attempt);
  absl::StatusOr<CheckpointManifest> CommitOnce(const Task& task);
  absl::StatusOr<std::string> ExportOnce(const Task& task);
  absl::StatusOr<std::vector<float>> WeightsOf(uint64_t version);

  const Options options_;
  CheckpointStore& store_;
  const std::unique_ptr<ShardFleet> fleet_;
  CheckpointListener* const listener_;
  prometheus::Counter& committed_;
  prometheus::Counter& commits_failed_;
  prometheus::Counter& exported_;
  prometheus::Counter& exports_failed_;
  prometheus::Histogram& commit_seconds_;
  prometheus::Histogram& export_seconds_;
  std::map<uint64_t, std::string> weights_sha256_;  // committed, not exported yet; of the thread

  mutable Mutex mutex_;
  mutable CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace millrace
