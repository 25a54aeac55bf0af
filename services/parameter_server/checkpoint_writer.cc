#include "services/parameter_server/checkpoint_writer.h"

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/model/servable.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "services/parameter_server/model_selection.h"
#include "services/parameter_server/schedule.h"
#include "services/parameter_server/shard_checkpoint.h"

namespace millrace {
namespace {

constexpr int kFinalAttempts = 3;
constexpr absl::Duration kFinalPause = absl::Seconds(1);

// What a manifest keeps of a plan: nothing that belongs to one run.
v1::JobPlan PlanOfTheJob(v1::JobPlan plan) {
  plan.clear_run_id();
  plan.clear_start_version();
  plan.clear_checkpoint_dir();
  plan.clear_output_dir();
  return plan;
}

absl::StatusOr<ShardState> ReadWholeCheckpoint(const v1::JobPlan& plan, uint64_t version, const std::string& directory,
                                               FileSystem& files) {
  return ReadShardCheckpoint(
      directory, {.version = version, .parameter_count = plan.parameter_count(), .optimizer = plan.spec().optimizer()},
      {0, plan.parameter_count()}, files);
}

prometheus::Counter& ResultCounter(Metrics* metrics, const char* what, const char* help, const char* result) {
  return metrics->Counter(absl::StrCat("millrace_coordinator_", what, "_total"), help, {{"result", result}});
}

}  // namespace

CheckpointWriter::CheckpointWriter(Options options, CheckpointStore* store, std::unique_ptr<ShardFleet> fleet,
                                   CheckpointListener* listener)
    : options_(std::move(options)),
      store_(*store),
      fleet_(std::move(fleet)),
      listener_(listener),
      committed_(ResultCounter(options_.metrics, "commits", "Training checkpoints.", "ok")),
      commits_failed_(ResultCounter(options_.metrics, "commits", "Training checkpoints.", "failed")),
      exported_(ResultCounter(options_.metrics, "exports", "Servable versions.", "ok")),
      exports_failed_(ResultCounter(options_.metrics, "exports", "Servable versions.", "failed")),
      commit_seconds_(options_.metrics->Histogram("millrace_coordinator_commit_seconds",
                                                  "Time to save and commit a training checkpoint.", LatencyBuckets())),
      export_seconds_(options_.metrics->Histogram("millrace_coordinator_export_seconds",
                                                  "Time to fetch and export a servable version.", LatencyBuckets())) {}

void CheckpointWriter::Stop() {
  stopping_ = true;
  fleet_->Cancel();
}

void CheckpointWriter::Run(const CheckpointTask& task) {
  switch (task.kind) {
    case CheckpointTask::kCommit:
      RunCommit(task);
      break;
    case CheckpointTask::kExport:
      RunExport(task);
      break;
    case CheckpointTask::kSkip:
      Settle(task.version, weights_sha256_.erase(task.version) > 0);
      break;
    case CheckpointTask::kNoteBest:
      WriteBest(*task.validation);
      break;
  }
}

template <typename T, typename Fn>
absl::StatusOr<T> CheckpointWriter::Try(uint64_t version, Fn attempt) {
  const bool final = IsFinalVersion(options_.plan, version);
  for (int left = final ? kFinalAttempts : 1;;) {
    absl::StatusOr<T> result = attempt();
    // A shard that is away either comes back, or another run begins and this one is stopped.
    const bool away = absl::IsUnavailable(result.status()) || absl::IsDeadlineExceeded(result.status()) ||
                      absl::IsUnknown(result.status()) || absl::IsCancelled(result.status());
    if (!(final && away)) --left;
    if (result.ok() || left == 0 || stopping_) return result;
    if (!away) {
      LogWarning("THE LAST VERSION COULD NOT BE SAVED, trying again",
                 {{"version", version}, {"attempts_left", left}, {"reason", result.status()}});
    }
    options_.pause(kFinalPause);
  }
}

void CheckpointWriter::RunCommit(const CheckpointTask& task) {
  const absl::Time began = absl::Now();
  const auto manifest = Try<CheckpointManifest>(task.version, [&] { return CommitOnce(task); });
  if (stopping_ && !manifest.ok()) return;
  commit_seconds_.Observe(absl::ToDoubleSeconds(absl::Now() - began));
  if (manifest.ok()) {
    committed_.Increment();
    LogInfo("checkpoint committed", {{"version", task.version},
                                     {"directory", store_.Directory(task.version).string()},
                                     {"weights_sha256", manifest->weights_sha256},
                                     {"seconds", absl::ToDoubleSeconds(absl::Now() - began)}});
    if (IsEpochEnd(options_.plan, task.version)) weights_sha256_[task.version] = manifest->weights_sha256;
    listener_->Committed(task.version, manifest->optimizer_sha256);
    const v1::Evaluation* const best = BestOf(options_.plan.spec(), task.record.validation);
    const absl::Status pruned = store_.Prune(options_.keep, best == nullptr ? 0 : best->version());
    if (!pruned.ok()) {
      LogWarning("old checkpoints could not be removed", {{"reason", pruned}});
    }
  } else {
    commits_failed_.Increment();
    LogError("CHECKPOINT FAILED, training goes on and the next one is tried",
             {{"version", task.version}, {"reason", manifest.status()}});
    listener_->CommitFailed(task.version, manifest.status());
  }
  if (!IsEpochEnd(options_.plan, task.version)) Settle(task.version, manifest.ok());
}

absl::StatusOr<CheckpointManifest> CheckpointWriter::CommitOnce(const CheckpointTask& task) {
  MILLRACE_RETURN_IF_ERROR(store_.Prepare(task.version));
  absl::Cleanup discard = [&] {
    if (const absl::Status status = store_.Discard(task.version); !status.ok()) {
      LogWarning("what is left of a failed checkpoint could not be removed", {{"reason", status}});
    }
  };
  const std::string directory = store_.Directory(task.version).string();
  MILLRACE_ASSIGN_OR_RETURN(const auto saved, fleet_->Save(task.version, directory));
  // Read back: digests over the whole vector, whatever the shards, and proof that what was written can be read.
  MILLRACE_ASSIGN_OR_RETURN(const ShardState state,
                            ReadWholeCheckpoint(options_.plan, task.version, directory, store_.files()));
  CheckpointManifest manifest{.version = task.version,
                              .plan = PlanOfTheJob(options_.plan),
                              .fingerprint = task.record.fingerprint,
                              .files = {},
                              .slot_checksums = {},
                              .weights_sha256 = WeightsSha256(state.weights),
                              .optimizer_sha256 = OptimizerSha256(state.optimizer),
                              .validation = task.record.validation,
                              .visits = task.record.visits};
  for (const v1::SaveCheckpointResponse& file : saved) {
    manifest.files.push_back({file.file(), file.bytes(), file.sha256()});
  }
  if (!task.record.slot_checksums.empty()) {
    const std::string text = SlotChecksumsToText(task.record.slot_checksums);
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(directory, "/", kSlotChecksumsFile), text, store_.files()));
    manifest.slot_checksums = CheckpointFile{kSlotChecksumsFile, text.size(), Sha256Hex(text)};
  }
  MILLRACE_RETURN_IF_ERROR(store_.Commit(manifest));
  std::move(discard).Cancel();
  return manifest;
}

void CheckpointWriter::RunExport(const CheckpointTask& task) {
  const absl::Time began = absl::Now();
  const auto weights_sha256 = Try<std::string>(task.version, [&] { return ExportOnce(task); });
  if (stopping_ && !weights_sha256.ok()) return;
  export_seconds_.Observe(absl::ToDoubleSeconds(absl::Now() - began));
  if (weights_sha256.ok()) {
    exported_.Increment();
    LogInfo("version exported", {{"model", options_.plan.spec().model_name()},
                                 {"version", task.version},
                                 {"weights_sha256", *weights_sha256},
                                 {"seconds", absl::ToDoubleSeconds(absl::Now() - began)}});
    listener_->Exported(task.version, *weights_sha256);
  } else {
    exports_failed_.Increment();
    LogError("EXPORT FAILED, training goes on and the next version is tried",
             {{"version", task.version}, {"reason", weights_sha256.status()}});
    listener_->ExportFailed(task.version, weights_sha256.status());
  }
  const bool was_committed = weights_sha256_.erase(task.version) > 0;
  Settle(task.version, was_committed);
}

// A convenience: what it says is also in the status, the summary and the next checkpoint's manifest.
void CheckpointWriter::WriteBest(const v1::Evaluation& best) {
  nlohmann::ordered_json json = {
      {"version", best.version()}, {"epoch", best.epoch()}, {"validation_loss", best.loss()}};
  if (best.has_accuracy()) json["validation_accuracy"] = best.accuracy();
  const std::string path = absl::StrCat(options_.plan.output_dir(), "/best.json");
  if (const absl::Status written = WriteFileAtomically(path, json.dump(2) + "\n", store_.files()); !written.ok()) {
    LogWarning("which version is the best could not be written", {{"reason", written}});
  }
}

absl::StatusOr<std::string> CheckpointWriter::ExportOnce(const CheckpointTask& task) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<float> weights, WeightsOf(task.version));
  const v1::JobPlan& plan = options_.plan;
  std::vector<uint8_t> reference_images;
  if (options_.reference_images) reference_images = options_.reference_images();
  MILLRACE_ASSIGN_OR_RETURN(const ExportedServable exported,
                            options_.export_servable({.repository = absl::StrCat(plan.output_dir(), "/models"),
                                                      .model_name = plan.spec().model_name(),
                                                      .version = task.version,
                                                      .epoch = EpochOf(plan, task.version),
                                                      .network = plan.network(),
                                                      .parameters = weights,
                                                      .validation = task.validation,
                                                      .test = task.test,
                                                      .reference_images = reference_images,
                                                      .seed = plan.spec().seed(),
                                                      .dataset_fingerprint = plan.dataset().fingerprint(),
                                                      .signing_key = options_.signing_key}));
  const auto committed = weights_sha256_.find(task.version);
  if (committed != weights_sha256_.end() && committed->second != exported.weights_sha256) {
    LogError("WEIGHTS DIFFER between the committed checkpoint and the exported version: memory or disk is corrupt",
             {{"version", task.version}, {"checkpoint", committed->second}, {"exported", exported.weights_sha256}});
  }
  return exported.weights_sha256;
}

absl::StatusOr<std::vector<float>> CheckpointWriter::WeightsOf(uint64_t version) {
  if (version != options_.plan.start_version()) return fleet_->FetchWeights(version);
  // The version a run resumes from: the shards keep no snapshot of it, the disk does.
  MILLRACE_ASSIGN_OR_RETURN(
      ShardState state, ReadWholeCheckpoint(options_.plan, version, options_.plan.checkpoint_dir(), store_.files()));
  return std::move(state.weights);
}

void CheckpointWriter::Settle(uint64_t version, bool committed) {
  if (version != options_.plan.start_version()) fleet_->Release(version, committed);
  listener_->Settled(version);
}

}  // namespace millrace
