#include "services/parameter_server/shard_checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr char kFormat[] = "millrace-checkpoint-1";
constexpr char kWeights[] = "weights";

std::string OptimizerTensor(const std::string& name) { return absl::StrCat("optimizer.", name); }

absl::Status Damaged(const std::string& path, absl::string_view fault) {
  return absl::DataLossError(absl::StrCat(path, ": ", fault));
}

// The number of shards whose files are in `directory`; all of them must be of one set.
absl::StatusOr<uint32_t> CountShards(const std::string& directory, FileSystem& files) {
  absl::StatusOr<std::vector<std::string>> names = files.List(directory);
  if (absl::IsNotFound(names.status())) names.emplace();
  MILLRACE_RETURN_IF_ERROR(names.status());
  std::optional<uint32_t> num_shards;
  for (const std::string& name : *names) {
    unsigned shard, of;
    if (std::sscanf(name.c_str(), "shard-%5u-of-%5u", &shard, &of) != 2 || name != ShardFileName(shard, of)) continue;
    if (num_shards.has_value() && *num_shards != of) {
      return Damaged(directory, absl::StrCat("it has files of ", *num_shards, " and of ", of, " shards"));
    }
    num_shards = of;
  }
  if (!num_shards.has_value()) return absl::NotFoundError(absl::StrCat("no checkpoint files in ", directory));
  return *num_shards;
}

absl::StatusOr<uint64_t> NumberOf(const SafetensorsFile& file, const std::string& key, const std::string& path) {
  const auto found = file.metadata().find(key);
  uint64_t value;
  if (found == file.metadata().end() || !absl::SimpleAtoi(found->second, &value)) {
    return Damaged(path, absl::StrCat("metadata '", key, "' is missing or no number"));
  }
  return value;
}

absl::Status CheckIdentity(const SafetensorsFile& file, const CheckpointIdentity& identity, const std::string& path) {
  const auto& metadata = file.metadata();
  const auto format = metadata.find("format");
  if (format == metadata.end() || format->second != kFormat) {
    return Damaged(path, absl::StrCat("its format is not ", kFormat));
  }
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t version, NumberOf(file, "version", path));
  MILLRACE_ASSIGN_OR_RETURN(const uint64_t parameter_count, NumberOf(file, "parameter_count", path));
  const auto optimizer = metadata.find("optimizer");
  const std::string kind = v1::OptimizerKind_Name(identity.optimizer.kind());
  if (version != identity.version) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of version ", version, ", not ", identity.version));
  }
  if (parameter_count != identity.parameter_count) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of a network with ", parameter_count,
                                                      " parameters, the job has ", identity.parameter_count));
  }
  if (optimizer == metadata.end() || optimizer->second != kind) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is of optimizer ", optimizer == metadata.end() ? "none" : optimizer->second, ", the job has ", kind));
  }
  return absl::OkStatus();
}

// The values of a tensor that must be flat over `elements`.
absl::StatusOr<std::span<const float>> FlatTensor(const SafetensorsFile& file, const std::string& name,
                                                  uint64_t elements, const std::string& path) {
  const TensorView* tensor = file.Find(name);
  if (tensor == nullptr || tensor->values.size() != elements) {
    return Damaged(path, absl::StrCat("tensor ", name, " is missing or has not ", elements, " elements"));
  }
  return tensor->values;
}

// Copies the part of `values`, which lie at `from` of the flat vector, that belongs to `to`.
void CopyOverlap(std::span<const float> values, ElementRange from, ElementRange to, std::span<float> out) {
  const uint64_t begin = std::max(from.begin, to.begin), end = std::min(from.end, to.end);
  if (begin >= end) return;
  std::copy(values.begin() + (begin - from.begin), values.begin() + (end - from.begin),
            out.begin() + (begin - to.begin));
}

}  // namespace

std::filesystem::path CheckpointDirectory(const std::filesystem::path& output, uint64_t version) {
  return output / "checkpoints" / std::to_string(version);
}

std::string ShardFileName(uint32_t shard, uint32_t num_shards) {
  return absl::StrFormat("shard-%05d-of-%05d.safetensors", shard, num_shards);
}

absl::StatusOr<WrittenFile> WriteShardCheckpoint(const std::string& path, const CheckpointIdentity& identity,
                                                 ElementRange range, std::span<const float> weights,
                                                 const OptimizerState& optimizer, FileSystem& files) {
  const std::vector<int64_t> shape = {static_cast<int64_t>(range.size())};
  std::vector<TensorView> tensors = {{kWeights, shape, weights}};
  for (const auto& tensor : optimizer.tensors) tensors.push_back({OptimizerTensor(tensor.name), shape, tensor.values});
  return WriteSafetensors(path, tensors,
                          {{"format", kFormat},
                           {"version", absl::StrCat(identity.version)},
                           {"begin", absl::StrCat(range.begin)},
                           {"end", absl::StrCat(range.end)},
                           {"parameter_count", absl::StrCat(identity.parameter_count)},
                           {"optimizer", v1::OptimizerKind_Name(identity.optimizer.kind())},
                           {"optimizer_step", absl::StrCat(optimizer.step)}},
                         files);
}

absl::StatusOr<ShardState> ReadShardCheckpoint(const std::string& directory, const CheckpointIdentity& identity,
                                               ElementRange range, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const uint32_t num_shards, CountShards(directory, files));
  ShardState state;
  state.weights.resize(range.size());
  std::map<std::string, std::vector<float>> optimizer;  // tensors by name, so in order
  uint64_t covered = 0;
  for (uint32_t shard = 0; shard < num_shards; ++shard) {
    const std::string path = std::filesystem::path(directory) / ShardFileName(shard, num_shards);
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Read(path, files);
    if (absl::IsNotFound(file.status())) return Damaged(path, "this part of the checkpoint is missing");
    MILLRACE_RETURN_IF_ERROR(file.status());
    MILLRACE_RETURN_IF_ERROR(CheckIdentity(*file, identity, path));

    ElementRange part;
    MILLRACE_ASSIGN_OR_RETURN(part.begin, NumberOf(*file, "begin", path));
    MILLRACE_ASSIGN_OR_RETURN(part.end, NumberOf(*file, "end", path));
    if (part.begin != covered || part.end <= part.begin || part.end > identity.parameter_count) {
      return Damaged(path, absl::StrCat("its elements [", part.begin, ", ", part.end, ") do not follow ", covered));
    }
    covered = part.end;

    MILLRACE_ASSIGN_OR_RETURN(const uint64_t step, NumberOf(*file, "optimizer_step", path));
    if (shard == 0) {
      state.optimizer.step = step;
      for (std::string& name : OptimizerTensorNames(identity.optimizer, step)) {
        optimizer[std::move(name)].resize(range.size());
      }
    } else if (step != state.optimizer.step) {
      return Damaged(path, absl::StrCat("its optimizer made ", step, " steps, another part's ", state.optimizer.step));
    }
    MILLRACE_ASSIGN_OR_RETURN(const auto weights, FlatTensor(*file, kWeights, part.size(), path));
    CopyOverlap(weights, part, range, state.weights);
    for (auto& [name, out] : optimizer) {
      MILLRACE_ASSIGN_OR_RETURN(const auto values, FlatTensor(*file, OptimizerTensor(name), part.size(), path));
      CopyOverlap(values, part, range, out);
    }
  }
  if (covered != identity.parameter_count) {
    return Damaged(directory, absl::StrCat("its files cover ", covered, " of ", identity.parameter_count, " elements"));
  }
  for (auto& [name, values] : optimizer) state.optimizer.tensors.push_back({name, std::move(values)});
  return state;
}

}  // namespace millrace
