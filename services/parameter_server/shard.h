// One shard of a job: a contiguous range of the flat vector, its optimizer and the gradient sum of the current step. To
// statistics, which are at the flat vector's end, a step adds the mean of what was pushed for them.
//
//   auto shard = Shard::Create({.plan = plan, .num_shards = 2, .info = info, .metrics = &metrics}, initial_weights);
//   if (!plan.checkpoint_dir().empty()) status = (*shard)->LoadCheckpoint(plan.checkpoint_dir());
//   service.Serve(std::move(*shard), &metrics);   // parameter_service.h: the gRPC side
//
// A shard belongs to one run. When the job goes back to a committed version, another shard takes over from the snapshot
// that this one kept (SnapshotOf, Restore), or from disk.
//
// Shards do not talk to each other: each applies step t as soon as it holds all slots of t, and what it holds does not
// depend on who computed or pushed it, so all of them make the same versions (DESIGN D3). A step is applied chunk by
// chunk, in order: while one chunk's gradient arrives, the chunk before it is in the optimizer and the one before that
// on its way to the workers. If the job clips gradients, the shards add up one number per step (norm_exchange.h), and
// apply the step when they know the sum.
//
// With unbounded staleness the shards apply a step when all of it is there, each in its own order; at a checkpoint
// boundary, which no step passes, all have applied the same ones.
//
// Threads: every method may be called from any thread. Gradients are added on the caller's thread under one lock;
// applying, snapshots, listeners and the disk are outside it. Ownership: the plan is copied;
// the metrics must outlive the shard.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/file_system.h"
#include "common/mutex.h"
#include "common/tensor/flat_layout.h"
#include "common/tensor/wire.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/committed_weights.h"
#include "services/parameter_server/gradient_norm.h"
#include "services/parameter_server/norm_exchange.h"
#include "services/parameter_server/optimizer.h"
#include "services/parameter_server/step_sums.h"
#include "services/parameter_server/weights_buffer.h"

namespace millrace {

class Metrics;
struct ShardMetrics;

// A version of which the elements [0, ready) are final and may be read.
struct WeightsProgress {
  WeightsVersion weights;
  uint64_t ready = 0;

  bool whole() const { return ready == weights.values.size(); }
};

// A shard whose norms are exchanged must be owned by a shared_ptr: it may be gone when the answer comes.
class Shard : public std::enable_shared_from_this<Shard> {
 public:
  struct Options {
    v1::JobPlan plan;
    v1::ShardInfo info;  // which range; `address` is not used
    uint32_t num_shards = 1;
    Metrics* metrics = nullptr;  // required
    // Of a job that clips gradients; null if there is no other shard.
    std::shared_ptr<NormExchange> norms = nullptr;
    FileSystem* files = &RealFileSystem();
    // Gradients come, and steps are applied, in pieces of this many elements: all peers must agree.
    uint64_t chunk_elements = kChunkElements;
    std::function<absl::StatusOr<std::unique_ptr<ShardOptimizer>>(const v1::OptimizerSpec&, uint64_t elements,
                                                                  uint64_t chunk_elements, uint64_t trainable)>
        make_optimizer = ShardOptimizer::Create;
  };

  // The whole state at one version.
  struct Snapshot {
    WeightsVersion weights;
    OptimizerState optimizer;
  };

  // Starts at plan.start_version with `initial_weights`, one value per element of the range. INVALID_ARGUMENT for a
  // range that does not fit the plan or the weights, or an optimizer that cannot be built.
  static absl::StatusOr<std::unique_ptr<Shard>> Create(Options options, std::span<const float> initial_weights);
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  // Replaces weights and optimizer state by those of the checkpoint in `directory`, written by any number of shards; it
  // must be of the plan's start version. To be called before the first gradient. NOT_FOUND without checkpoint files;
  // DATA_LOSS for files that are damaged, do not cover the flat vector exactly once or disagree about the version;
  // FAILED_PRECONDITION for another job's parameters, optimizer or version than the plan's. The shard is untouched on
  // error.
  absl::Status LoadCheckpoint(const std::string& directory);

  // The same, from a snapshot of the same range in an earlier run of the job. INVALID_ARGUMENT if it does not fit.
  absl::Status Restore(std::shared_ptr<const Snapshot> snapshot);

  // What there is in memory of a checkpoint version: retained for its checkpoint, or kept as the newest committed one.
  // Null if there is nothing.
  std::shared_ptr<const Snapshot> SnapshotOf(uint64_t version) const;

  const v1::JobPlan& plan() const { return options_.plan; }
  uint32_t index() const { return options_.info.shard(); }
  ElementRange range() const { return {options_.info.begin(), options_.info.end()}; }
  uint64_t version() const;

  // The newest weights that are whole.
  WeightsVersion weights() const;

  // The weights of the newest version, of one of the RetainedVersions before it, of a retained snapshot, or of a
  // committed checkpoint, for which the caller waits until it is read; else NOT_FOUND.
  absl::StatusOr<WeightsVersion> WeightsAt(uint64_t version) const;

  struct AddResult {
    bool push_complete = false;   // every chunk of the chunk's slots is held, or its step was applied already
    bool chunk_complete = false;  // the chunk is held for all slots: Apply may have work to do
  };

  // Adds one chunk to the sum of its step; a chunk that is held already changes nothing. INVALID_ARGUMENT if it does
  // not fit the shard's range and grid, the job's slots or the step's samples, or if it is the last of its push and an
  // earlier one is missing; FAILED_PRECONDITION for a step that cannot have been computed yet; INTERNAL once a step has
  // failed.
  absl::StatusOr<AddResult> AddGradient(const GradientChunkView& chunk);

  // Applies, front to back, the chunks that are complete and not applied yet, and calls the listeners after each. The
  // last chunk makes the next version, of which a snapshot is kept if it is a checkpoint boundary: it is taken once the
  // listeners know of the version, so that workers receive the weights meanwhile. A thread that comes while another one
  // applies leaves it the work. INTERNAL if LibTorch failed; the shard is of no use then.
  absl::Status Apply();

  // `listener` is called after every applied chunk, on the thread that applied it, without locks held; never two calls
  // at once, and in order. To be called before the first gradient.
  void OnApplied(std::function<void(const WeightsProgress&)> listener);

  // `listener` is called once with the reason if a step cannot be applied, on the thread that tried, no locks held.
  // To be called before the first gradient.
  void OnBroken(std::function<void(const absl::Status&)> listener) { broken_listener_ = std::move(listener); }

  struct SavedFile {
    std::string file;  // name inside the directory
    uint64_t bytes = 0;
    std::string sha256;
  };

  // Writes the snapshot of `version` as shard-IIIII-of-NNNNN.safetensors into `directory`, which is made if it is not
  // there; the file is complete and on disk, or absent. Blocks for the disk. NOT_FOUND without such a snapshot.
  absl::StatusOr<SavedFile> SaveCheckpoint(uint64_t version, const std::string& directory);

  // Frees a snapshot, or stops one that is being taken from being kept; one that is not there is no error. A committed
  // one takes the place of the one committed before it.
  void ReleaseSnapshot(uint64_t version, bool committed);

  // The part of another shard has come; NormExchange::Receive says when `answer` is called.
  void ReceiveNorm(uint32_t shard, uint64_t step, const SquaredNorm& part, NormExchange::Answer answer);
  // No norm will be known any more, and no step be applied that needs one.
  void CancelNorms();

  // "step 812: slots 5-7", or "nothing" once the job's last version is there.
  std::string WaitingFor() const;

 private:
  Shard(Options options, std::span<const float> initial_weights, std::unique_ptr<ShardOptimizer> optimizer);

  // Elements of the range that the optimizer updates; statistics are behind them.
  uint64_t trainable() const;
  std::optional<WeightsVersion> HeldWeights(uint64_t version) const;
  std::optional<WeightsVersion> HeldWeightsLocked(uint64_t version) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckFits(const GradientChunkHeader& chunk) const;
  uint64_t SizeOfChunk(uint64_t offset) const { return ChunkSize(range().size(), offset, options_.chunk_elements); }

  // A piece of work on one step, to be done by the thread that set applying_. If gradients are clipped, all chunks are
  // measured as they come, then the norm is asked for, and when it is known they are applied.
  struct Work {
    enum Kind { kMeasure, kAskNorm, kApply } kind = kApply;
    absl::Time started;
    uint64_t step = 0;
    uint64_t staleness = 0;
    uint64_t chunk = 0;
    ElementRange elements{};  // of the chunk
    std::span<const float> current{};
    WeightsVersion stale{};  // what the gradient was computed on, if that matters
    WeightsDraft next{};
    std::span<float> gradient{};  // of the whole range; that of the chunk is complete
    double clip_scale = 1;
    SquaredNorm norm{};  // of the range, for kAskNorm
  };
  bool unbounded() const { return plan().spec().asynchrony().unbounded(); }
  bool IsAppliedLocked(uint64_t step) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The step that the next chunk to be applied belongs to; nullopt if that chunk is not complete.
  std::optional<uint64_t> NextStepLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // How many versions the newest weights are ahead of those that `step` was computed on.
  uint64_t StalenessLocked(uint64_t step) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<Work> TakeWork();  // nullopt, and applying_ cleared, if there is none
  void ScaleToMean(const Work& work) const;
  absl::Status ApplyChunk(const Work& work);
  absl::Status FinishWork(const Work& work, const absl::Status& applied);
  void EndStepLocked(const Work& last) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // shard_snapshots.cc, as is what is public about snapshots and checkpoints.
  void TakeSnapshotIfDue();
  void KeepSnapshotLocked(std::shared_ptr<const Snapshot> snapshot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // shard_clipping.cc
  bool clips() const { return plan().spec().clip_norm() > 0; }
  std::optional<Work> TakeNormWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MeasureChunk(const Work& work);
  void AskNorm(const Work& work);
  void NoteNorm(uint64_t step, const SquaredNorm& total);

  const Options options_;
  const std::unique_ptr<ShardMetrics> metrics_;
  std::vector<std::function<void(const WeightsProgress&)>> listeners_;
  std::function<void(const absl::Status&)> broken_listener_;

  mutable Mutex mutex_;
  uint64_t version_ ABSL_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);  // why no further step can be applied
  WeightsPool weights_ ABSL_GUARDED_BY(mutex_);
  std::deque<WeightsVersion> previous_ ABSL_GUARDED_BY(mutex_);  // oldest first
  StepSums sums_ ABSL_GUARDED_BY(mutex_);
  uint64_t oldest_step_ ABSL_GUARDED_BY(mutex_);               // not applied; all before it are
  std::set<uint64_t> applied_ahead_ ABSL_GUARDED_BY(mutex_);  // after oldest_step_; only with unbounded staleness
  std::map<uint64_t, std::shared_ptr<const Snapshot>> snapshots_ ABSL_GUARDED_BY(mutex_);
  std::optional<uint64_t> snapshot_due_ ABSL_GUARDED_BY(mutex_);  // of this version, by the thread that made it
  std::shared_ptr<const Snapshot> committed_ ABSL_GUARDED_BY(mutex_);  // the newest; null before the first

  bool applying_ ABSL_GUARDED_BY(mutex_) = false;     // some thread is in Apply's loop
  uint64_t current_step_ ABSL_GUARDED_BY(mutex_) = 0;  // the step being applied, once next_chunk_ > 0
  uint64_t next_chunk_ ABSL_GUARDED_BY(mutex_) = 0;   // of the current step, to be applied
  WeightsDraft next_ ABSL_GUARDED_BY(mutex_);         // of the current step, once next_chunk_ > 0
  // Of step oldest_step_, if gradients are clipped:
  uint64_t next_measured_ ABSL_GUARDED_BY(mutex_) = 0;         // chunk
  SquaredNorm norm_ ABSL_GUARDED_BY(mutex_);                   // of the chunks before it
  bool norm_asked_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<double> clip_scale_ ABSL_GUARDED_BY(mutex_);   // once the norm of all shards is known
  absl::Duration step_time_ ABSL_GUARDED_BY(mutex_);  // spent on the current step's chunks

  mutable CommittedWeights committed_weights_;
  const std::unique_ptr<ShardOptimizer> optimizer_;   // of the thread that set applying_; before it, of LoadCheckpoint
};

}  // namespace millrace
