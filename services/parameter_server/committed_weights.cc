#include "services/parameter_server/committed_weights.h"

#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "services/parameter_server/shard_checkpoint.h"

namespace millrace {

CommittedWeights::CommittedWeights(const v1::JobPlan& plan, ElementRange range, FileSystem* files)
    : output_dir_(plan.output_dir()),
      parameter_count_(plan.parameter_count()),
      optimizer_(plan.spec().optimizer()),
      range_(range),
      files_(*files) {}

absl::StatusOr<WeightsVersion> CommittedWeights::Read(uint64_t version) {
  MutexLock lock(&mutex_);
  if (last_.owner != nullptr && last_.version == version) return last_;
  const std::filesystem::path directory = CheckpointDirectory(output_dir_, version);
  if (output_dir_.empty() || !files_.FileSize(directory / kCheckpointManifest).ok()) {
    return absl::NotFoundError(
        absl::StrCat("version ", version, " is neither one of the newest, nor a retained snapshot, nor committed"));
  }
  absl::StatusOr<ShardState> state =
      ReadShardCheckpoint(directory, {version, parameter_count_, optimizer_}, range_, files_);
  if (!state.ok()) {
    LogWarning("a checkpoint could not be read", {{"directory", directory.string()}, {"reason", state.status()}});
    return absl::NotFoundError(absl::StrCat("the checkpoint of version ", version, ": ", state.status().message()));
  }
  const auto weights = std::make_shared<const std::vector<float>>(std::move(state->weights));
  last_ = {.version = version, .values = *weights, .wire = {}, .owner = weights};
  return last_;
}

}  // namespace millrace
