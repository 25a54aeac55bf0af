#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/shard_checkpoint.h"
#include "services/parameter_server/shard_fleet.h"

namespace millrace {

// The weights every fake shard has at `version`.
inline std::vector<float> FakeWeights(const v1::JobPlan& plan, uint64_t version) {
  std::vector<float> weights(plan.parameter_count());
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.001f * static_cast<float>(version + i % 7);
  return weights;
}

// Shards without processes: they write real checkpoint files. `error` makes the next calls fail.
class FakeFleet : public ShardFleet {
 public:
  FakeFleet(const v1::JobPlan& plan, uint32_t shards)
      : plan_(plan), ranges_(*ShardRanges(plan.parameter_count(), shards)) {}

  absl::StatusOr<std::vector<v1::SaveCheckpointResponse>> Save(uint64_t version,
                                                               const std::string& directory) override {
    ++saves;
    std::vector<v1::SaveCheckpointResponse> saved;
    const std::vector<float> weights = FakeWeights(plan_, version);
    for (uint32_t shard = 0; shard < ranges_.size(); ++shard) {
      if (shard + 1 == ranges_.size() && !error.ok()) return error;  // after the other shards have written theirs
      const std::string name = ShardFileName(shard, static_cast<uint32_t>(ranges_.size()));
      const ElementRange range = ranges_[shard];
      const auto file = WriteShardCheckpoint(
          (std::filesystem::path(directory) / name).string(),
          {.version = version, .parameter_count = plan_.parameter_count(), .optimizer = plan_.spec().optimizer()},
          range, std::span(weights).subspan(range.begin, range.size()), {.step = version, .tensors = {}});
      if (!file.ok()) return file.status();
      v1::SaveCheckpointResponse& response = saved.emplace_back();
      response.set_file(name);
      response.set_bytes(file->bytes);
      response.set_sha256(file->sha256);
    }
    return saved;
  }
  absl::StatusOr<std::vector<float>> FetchWeights(uint64_t version) override {
    if (!error.ok()) return error;
    return FakeWeights(plan_, version);
  }
  void Release(uint64_t version, bool committed) override {
    released.push_back(absl::StrCat(version, committed ? " committed" : " given up"));
  }
  void Cancel() override {}

  absl::Status error;
  int saves = 0;
  std::vector<std::string> released;

 private:
  const v1::JobPlan plan_;
  const std::vector<ElementRange> ranges_;
};

}  // namespace millrace
