#include "services/parameter_server/step_sums.h"

#include <utility>

namespace millrace {

StepSums::StepSums(uint64_t elements, uint64_t chunk_elements, uint32_t slots, v1::NumberFormat wire)
    : make_([=] { return std::make_unique<StepSum>(Aggregator(elements, chunk_elements, slots, wire)); }) {}

StepSum& StepSums::Of(uint64_t step) {
  std::unique_ptr<StepSum>& found = steps_[step];
  if (found == nullptr && !free_.empty()) {
    found = std::move(free_.back());
    free_.pop_back();
  }
  if (found == nullptr) found = make_();
  return *found;
}

const StepSum* StepSums::Find(uint64_t step) const {
  const auto found = steps_.find(step);
  return found == steps_.end() ? nullptr : found->second.get();
}

void StepSums::Retire(uint64_t step) {
  const auto found = steps_.find(step);
  if (found == steps_.end()) return;
  found->second->sum.Reset();
  found->second->weights_versions.clear();
  free_.push_back(std::move(found->second));
  steps_.erase(found);
}

}  // namespace millrace
