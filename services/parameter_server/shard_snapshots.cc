// The snapshots of a shard's state: taken at checkpoint boundaries, written to disk, and what a shard starts from.
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "services/parameter_server/shard.h"
#include "services/parameter_server/shard_checkpoint.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {
namespace {

// The coordinator does not pass a boundary before the one before it is committed, so it never needs more.
constexpr size_t kSnapshotsMax = 2;

}  // namespace

absl::Status Shard::LoadCheckpoint(const std::string& directory) {
  const CheckpointIdentity identity{plan().start_version(), plan().parameter_count(), plan().spec().optimizer()};
  MILLRACE_ASSIGN_OR_RETURN(const ShardState state, ReadShardCheckpoint(directory, identity, range(), *options_.files));
  MutexLock lock(&mutex_);
  MILLRACE_RETURN_IF_ERROR(optimizer_->Load(state.optimizer));
  const WeightsDraft loaded = weights_.Begin(version_);
  loaded.Fill(state.weights);
  weights_.Publish(loaded);
  committed_ = std::make_shared<const Snapshot>(Snapshot{weights_.current(), state.optimizer});
  return absl::OkStatus();
}

absl::Status Shard::Restore(std::shared_ptr<const Snapshot> snapshot) {
  MutexLock lock(&mutex_);
  if (snapshot->weights.version != version_ || snapshot->weights.values.size() != range().size()) {
    return absl::InvalidArgumentError(absl::StrCat("a snapshot of ", snapshot->weights.values.size(),
                                                   " elements at version ", snapshot->weights.version, " for ",
                                                   range().size(), " at version ", version_));
  }
  MILLRACE_RETURN_IF_ERROR(optimizer_->Load(snapshot->optimizer));
  const WeightsDraft restored = weights_.Begin(version_);
  restored.Fill(snapshot->weights.values);
  weights_.Publish(restored);
  committed_ = std::move(snapshot);
  return absl::OkStatus();
}

std::shared_ptr<const Shard::Snapshot> Shard::SnapshotOf(uint64_t version) const {
  MutexLock lock(&mutex_);
  if (committed_ != nullptr && committed_->weights.version == version) return committed_;
  const auto retained = snapshots_.find(version);
  return retained == snapshots_.end() ? nullptr : retained->second;
}

// The first few take new memory, for about as long as a step's update. No later step comes between: this thread would
// apply it.
void Shard::TakeSnapshotIfDue() {
  WeightsVersion weights;
  {
    MutexLock lock(&mutex_);
    if (!snapshot_due_.has_value()) return;
    weights = weights_.current();
  }
  auto snapshot = std::make_shared<const Snapshot>(Snapshot{std::move(weights), optimizer_->Save()});
  MutexLock lock(&mutex_);
  if (snapshot_due_.has_value()) KeepSnapshotLocked(std::move(snapshot));
  snapshot_due_.reset();
}

void Shard::KeepSnapshotLocked(std::shared_ptr<const Snapshot> snapshot) {
  if (snapshots_.size() == kSnapshotsMax) {
    LogError("snapshot dropped: it was never released",
             {{"version", snapshots_.begin()->first}, {"snapshots_max", kSnapshotsMax}});
    metrics_->snapshots_dropped.Increment();
    snapshots_.erase(snapshots_.begin());
  }
  snapshots_[version_] = std::move(snapshot);
  metrics_->snapshots.Set(static_cast<double>(snapshots_.size()));
}

absl::StatusOr<Shard::SavedFile> Shard::SaveCheckpoint(uint64_t version, const std::string& directory) {
  std::shared_ptr<const Snapshot> snapshot;
  {
    MutexLock lock(&mutex_);
    const auto found = snapshots_.find(version);
    if (found == snapshots_.end()) {
      return absl::NotFoundError(absl::StrCat("no snapshot of version ", version, " is retained"));
    }
    snapshot = found->second;
  }
  const absl::Time begin = absl::Now();
  const CheckpointIdentity identity{version, plan().parameter_count(), plan().spec().optimizer()};
  const std::string file = ShardFileName(index(), options_.num_shards);
  const auto write = [&]() -> absl::StatusOr<WrittenFile> {
    MILLRACE_RETURN_IF_ERROR(options_.files->MakeDirectories(directory));
    return WriteShardCheckpoint(std::filesystem::path(directory) / file, identity, range(), snapshot->weights.values,
                                snapshot->optimizer, *options_.files);
  };
  absl::StatusOr<WrittenFile> written = write();
  if (!written.ok()) {
    metrics_->checkpoint_failures.Increment();
    return written.status();
  }
  metrics_->checkpoint_bytes.Increment(static_cast<double>(written->bytes));
  metrics_->checkpoint_seconds.Observe(absl::ToDoubleSeconds(absl::Now() - begin));
  return SavedFile{file, written->bytes, std::move(written->sha256)};
}

void Shard::ReleaseSnapshot(uint64_t version, bool committed) {
  std::shared_ptr<const Snapshot> released;  // freed after the lock
  MutexLock lock(&mutex_);
  if (snapshot_due_ == version) snapshot_due_.reset();
  const auto found = snapshots_.find(version);
  if (found == snapshots_.end()) return;
  released = std::move(found->second);
  if (committed) released.swap(committed_);
  snapshots_.erase(found);
  metrics_->snapshots.Set(static_cast<double>(snapshots_.size()));
}

}  // namespace millrace
