#include "common/tensor/flat_layout.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {

absl::Status ParameterTable::Add(std::string name, std::vector<int64_t> shape) {
  if (statistics_size() > 0) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " comes behind the statistics"));
  }
  MILLRACE_RETURN_IF_ERROR(Append(std::move(name), std::move(shape)));
  trainable_size_ = size_;
  return absl::OkStatus();
}

absl::Status ParameterTable::AddStatistic(std::string name, std::vector<int64_t> shape) {
  return Append(std::move(name), std::move(shape));
}

absl::Status ParameterTable::Append(std::string name, std::vector<int64_t> shape) {
  constexpr uint64_t kElementsMax = uint64_t{1} << 40;
  if (std::any_of(parameters_.begin(), parameters_.end(), [&](const auto& known) { return known.name == name; })) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is there twice"));
  }
  uint64_t size = 1;
  for (int64_t dimension : shape) {
    if (dimension < 1 || static_cast<uint64_t>(dimension) > kElementsMax / size) {
      return absl::InvalidArgumentError(
          absl::StrCat("parameter ", name, " has a dimension of ", dimension, ", outside [1, 2^40 elements]"));
    }
    size *= static_cast<uint64_t>(dimension);
  }
  if (size > kElementsMax - size_) {
    return absl::InvalidArgumentError(absl::StrCat("parameters up to ", name, " are over the limit of 2^40 elements"));
  }
  parameters_.push_back({std::move(name), std::move(shape), size_, size});
  size_ += size;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ElementRange>> ShardRanges(uint64_t count, uint32_t shards) {
  const uint64_t blocks = (count + kShardAlignment - 1) / kShardAlignment;
  if (shards == 0 || shards > blocks) {
    return absl::InvalidArgumentError(absl::StrCat(shards, " shards for ", count,
                                                   " parameters: there must be between 1 and ", blocks, ", one per ",
                                                   kShardAlignment, " parameters"));
  }
  // shards <= blocks <= 2^40 / 64 + 1, so the product fits.
  std::vector<ElementRange> ranges(shards);
  for (uint64_t i = 0; i < shards; ++i) {
    ranges[i] = {blocks * i / shards * kShardAlignment, std::min(blocks * (i + 1) / shards * kShardAlignment, count)};
  }
  return ranges;
}

}  // namespace millrace
