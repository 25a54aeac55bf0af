#include "services/parameter_server/weights_buffer.h"

#include <algorithm>
#include <utility>

namespace millrace {

WeightsPool::WeightsPool(uint64_t version, std::span<const float> values) : elements_(values.size()) {
  const WeightsDraft first = Begin(version);
  std::copy(values.begin(), values.end(), first.values.begin());
  Publish(first);
}

WeightsDraft WeightsPool::Begin(uint64_t version) {
  auto spare = std::find_if(buffers_.begin(), buffers_.end(), [](const std::shared_ptr<Buffer>& buffer) {
    return !buffer->held.load(std::memory_order_acquire);
  });
  if (spare == buffers_.end()) {
    spare = buffers_.insert(spare, std::make_shared<Buffer>());
    (*spare)->values = AlignedBuffer<float>(elements_);
  }
  const std::shared_ptr<Buffer>& buffer = *spare;
  buffer->held.store(true, std::memory_order_relaxed);
  // The deleter owns the buffer, so that a version may outlive the pool.
  std::shared_ptr<const void> owner(buffer->values.data(),
                                    [buffer](const void*) { buffer->held.store(false, std::memory_order_release); });
  return {buffer->values.span(), {version, buffer->values.span(), std::move(owner)}};
}

}  // namespace millrace
