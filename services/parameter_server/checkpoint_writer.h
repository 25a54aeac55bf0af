// What the checkpointer does, step by step, on the caller's thread: saving and committing one checkpoint, exporting one
// version. Checkpointer gives it a thread and a queue; a simulation gives it its own time.
//
// A version that a checkpoint is due at goes through
//   Commit:  shards save their snapshots -> digests -> slot checksums -> manifest.json -> older checkpoints pruned, but
//   for the best one Export:  (epoch ends only, once evaluated) weights fetched -> <output>/models/<name>/<version>/;
//   or Skip the shards release their snapshots -> Settled
// A step that fails (a full disk) is reported and logged, leaves nothing half-written, and the next version tries
// again; the last version of the job is tried a few times. Training does not stop for it. A writer belongs to one run.
//
// <output>/best.json names the version that is the best in validation so far, for scripts and people.
//
// Threads: one at a time, but for Stop, which any thread may call. The listener is called from Run.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model/servable.h"
#include "common/slot_checksums.h"
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

// What goes with the weights of a checkpoint.
struct CheckpointRecord {
  std::vector<v1::Evaluation> validation = {};  // the history before the version
  RunFingerprint fingerprint = {};
  SlotChecksums slot_checksums = {};          // of the steps before the version; may be empty
  std::optional<v1::VisitCheck> visits = {};  // what was trained of its epoch before the version
};

struct CheckpointTask {
  enum Kind { kCommit, kExport, kSkip, kNoteBest } kind;
  uint64_t version;
  CheckpointRecord record = {};                   // of a commit
  std::optional<v1::Evaluation> validation = {};  // of an export, or the best
  std::optional<v1::Evaluation> test = {};        // of an export
};

class CheckpointWriter {
 public:
  struct Options {
    v1::JobPlan plan;
    size_t keep = 3;                                          // committed checkpoints that stay
    Metrics* metrics = nullptr;                               // required
    std::shared_ptr<const SigningKey> signing_key = nullptr;  // of exported versions; null: they are not signed
    // For the manifest's reference: ExportOptions::reference_images, empty if they cannot be had. May take seconds.
    std::function<std::vector<uint8_t>()> reference_images = nullptr;
    // Waits between two attempts at the last version, or until Stop. Required.
    std::function<void(absl::Duration)> pause;
    std::function<absl::StatusOr<ExportedServable>(const ExportOptions&)> export_servable = ExportServable;
  };

  // Store and listener must outlive the writer; nobody else uses the store meanwhile.
  CheckpointWriter(Options options, CheckpointStore* store, std::unique_ptr<ShardFleet> fleet,
                   CheckpointListener* listener);

  // Blocks for shards and disk.
  void Run(const CheckpointTask& task);
  // Makes Run return soon; the listener hears no more of what had not succeeded.
  void Stop();

 private:
  void RunCommit(const CheckpointTask& task);
  void RunExport(const CheckpointTask& task);
  void WriteBest(const v1::Evaluation& best);
  void Settle(uint64_t version, bool committed);
  // Tries `attempt`, for the job's last version more than once, and then for as long as a shard is away.
  template <typename T, typename Fn>
  absl::StatusOr<T> Try(uint64_t version, Fn attempt);
  absl::StatusOr<CheckpointManifest> CommitOnce(const CheckpointTask& task);
  absl::StatusOr<std::string> ExportOnce(const CheckpointTask& task);
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
  std::map<uint64_t, std::string> weights_sha256_;  // committed, not exported yet
  std::atomic<bool> stopping_ = false;
};

}  // namespace millrace
