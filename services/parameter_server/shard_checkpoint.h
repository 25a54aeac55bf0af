// The file format of a shard's part of a training checkpoint, and reading a checkpoint back by any number of shards.
//
// A checkpoint directory holds shard-IIIII-of-NNNNN.safetensors for every I < N: tensor "weights" and one tensor
// "optimizer.NAME" per tensor of the optimizer, each flat over the shard's range. Metadata: format
// ("millrace-checkpoint-1"), version, begin, end, parameter_count, optimizer (the OptimizerKind's name) and
// optimizer_step. Whether the checkpoint is committed is for its manifest to say, not for these files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/tensor/flat_layout.h"
#include "common/tensor/safetensors.h"
#include "millrace/v1/job.pb.h"
#include "services/parameter_server/optimizer.h"

namespace millrace {

// Of one version, in the output directory of its job.
std::filesystem::path CheckpointDirectory(const std::filesystem::path& output, uint64_t version);
// Its last file: without it the checkpoint does not exist.
inline constexpr std::string_view kCheckpointManifest = "manifest.json";

std::string ShardFileName(uint32_t shard, uint32_t num_shards);

// What a checkpoint must be a checkpoint of.
struct CheckpointIdentity {
  uint64_t version = 0;
  uint64_t parameter_count = 0;
  v1::OptimizerSpec optimizer;
};

// Errors as WriteSafetensors.
absl::StatusOr<WrittenFile> WriteShardCheckpoint(const std::string& path, const CheckpointIdentity& identity,
                                                 ElementRange range, std::span<const float> weights,
                                                 const OptimizerState& optimizer, FileSystem& files = RealFileSystem());

struct ShardState {
  std::vector<float> weights;
  OptimizerState optimizer;
};

// The state of elements `range`, from files written by any number of shards. NOT_FOUND if the directory has no such
// files; DATA_LOSS if they are damaged, are not all there or do not cover [0, parameter_count) exactly once;
// FAILED_PRECONDITION if they are well-formed but of another version, parameter count or optimizer.
absl::StatusOr<ShardState> ReadShardCheckpoint(const std::string& directory, const CheckpointIdentity& identity,
                                               ElementRange range, FileSystem& files = RealFileSystem());

}  // namespace millrace
