// Where every parameter lies in the flat vector, and which part of the vector each shard owns (DESIGN D4).
//
//   ParameterTable table;
//   table.Add("conv.weight", {32, 1, 3, 3});   // elements [0, 288)
//   table.Add("conv.bias", {32});              // elements [288, 320)
//   auto ranges = ShardRanges(table.size(), 2);
//
// Plain values; nothing here is shared between threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// Shard boundaries are multiples of this many elements. A vectorised kernel treats the last, partial vector of its
// input apart from the rest and may round it differently; with such boundaries only the very end of the flat vector is
// ever a partial vector, whatever the number of shards. The same goes for numbers that are rounded together
// (number_format.h).
inline constexpr uint64_t kShardAlignment = 64;

// Elements [begin, end) of the flat vector.
struct ElementRange {
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t size() const { return end - begin; }
  bool operator==(const ElementRange&) const = default;
};

struct ParameterInfo {
  std::string name;
  std::vector<int64_t> shape;  // row-major; empty for a scalar
  uint64_t offset = 0;         // first element in the flat vector
  uint64_t size = 0;           // elements
};

// Parameters in the order in which they lie in the flat vector, without gaps.
class ParameterTable {
 public:
  // INVALID_ARGUMENT (table untouched) for a name already taken, a dimension below 1, or a size over 2^40 elements;
  // also for a parameter that would come behind a statistic.
  absl::Status Add(std::string name, std::vector<int64_t> shape);
  // A tensor that the forward pass changes in training (batch normalisation's running mean). Statistics lie behind all
  // trainable parameters.
  absl::Status AddStatistic(std::string name, std::vector<int64_t> shape);

  const std::vector<ParameterInfo>& parameters() const { return parameters_; }  // statistics too, at the end
  uint64_t size() const { return size_; }                                       // elements of the flat vector
  uint64_t trainable_size() const { return trainable_size_; }                   // elements before the statistics
  uint64_t statistics_size() const { return size_ - trainable_size_; }

 private:
  absl::Status Append(std::string name, std::vector<int64_t> shape);

  std::vector<ParameterInfo> parameters_;
  uint64_t size_ = 0;
  uint64_t trainable_size_ = 0;
};

// Splits [0, count) into `shards` ranges in order, as equal as the alignment allows and none empty. INVALID_ARGUMENT if
// there are more shards than blocks of kShardAlignment elements, or no shards.
absl::StatusOr<std::vector<ElementRange>> ShardRanges(uint64_t count, uint32_t shards);

}  // namespace millrace
