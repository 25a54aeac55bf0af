// manifest.json of a training checkpoint: what it is a checkpoint of, and what its files must be. Written last: a
// checkpoint without one does not exist.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/run_fingerprint.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/optimizer.h"
#include "services/parameter_server/shard_checkpoint.h"

namespace millrace {

inline constexpr int kCheckpointFormat = 1;

struct CheckpointFile {
  std::string name;  // inside the checkpoint's directory
  uint64_t bytes = 0;
  std::string sha256;
};

struct CheckpointManifest {
  uint64_t version = 0;
  v1::JobPlan plan;  // without what belongs to one run: run id, start version, directories
  RunFingerprint fingerprint;
  std::vector<CheckpointFile> files;  // one per shard
  // What the slots of the steps before `version` came to (common/slot_checksums.h); no checkpoint written before there
  // was such a file has one, nor has one of a job that is not reproducible. Not one of `files`: a checkpoint that lost
  // its records is as good to resume from as ever, and only `millrace replay` looks at their digest.
  std::optional<CheckpointFile> slot_checksums = {};
  // Over the whole flat vectors, so the same for any number of shards. Lower-case hexadecimal.
  std::string weights_sha256;
  std::string optimizer_sha256;
  std::vector<v1::Evaluation> validation;  // of the epochs completed before `version`
  // What was trained of the epoch that `version` is in the middle of; absent at its beginning, and in manifests from
  // before it was counted.
  std::optional<v1::VisitCheck> visits;
};

std::string CheckpointManifestToJson(const CheckpointManifest& manifest);

// DATA_LOSS that names the field for anything missing or malformed; UNIMPLEMENTED for another format.
absl::StatusOr<CheckpointManifest> CheckpointManifestFromJson(std::string_view json);

// SHA-256 over the step (8 bytes, little-endian), then for each tensor by name: the name, a zero byte, its values as
// little-endian float32.
std::string OptimizerSha256(const OptimizerState& state);

// OK if `plan` goes on where `saved` stopped: the same job and dataset, with at least as many epochs as are done. What
// has no say in a step that was made already may differ: the epochs (unless the learning rate is laid out over them),
// when checkpoints are due, early stopping, and which versions are the best and exported. FAILED_PRECONDITION names the
// difference.
absl::Status CheckSameJob(const CheckpointManifest& saved, const v1::JobPlan& plan);

}  // namespace millrace
