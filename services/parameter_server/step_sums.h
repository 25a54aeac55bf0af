// The gradient sums of the steps that a shard takes gradients for: the next one to be applied and, with staleness, some
// after it.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "services/parameter_server/aggregator.h"

namespace millrace {

struct StepSum {
  explicit StepSum(Aggregator step_sum) : sum(std::move(step_sum)) {}

  Aggregator sum;
  std::vector<uint64_t> weights_versions;  // of the pushes that are held whole, each the version it was computed on
};

class StepSums {
 public:
  // As Aggregator's.
  StepSums(uint64_t elements, uint64_t chunk_elements, uint32_t slots, v1::NumberFormat wire);

  // The sum of `step`, empty at first.
  StepSum& Of(uint64_t step);
  // Null for a step of which nothing has come.
  const StepSum* Find(uint64_t step) const;
  // Forgets the step; its memory serves another.
  void Retire(uint64_t step);

  // Steps of which something has come, in order.
  const std::map<uint64_t, std::unique_ptr<StepSum>>& steps() const { return steps_; }

 private:
  const std::function<std::unique_ptr<StepSum>()> make_;
  std::map<uint64_t, std::unique_ptr<StepSum>> steps_;
  std::vector<std::unique_ptr<StepSum>> free_;
};

}  // namespace millrace
