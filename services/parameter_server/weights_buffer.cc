#include "services/parameter_server/weights_buffer.h"

#include <algorithm>
#include <utility>

namespace millrace {

void WeightsDraft::Finish(uint64_t begin, uint64_t end) const {
  if (wire.empty()) return;
  const size_t first = EncodedBytes(weights.format, begin);
  Encode(weights.format, values.subspan(begin, end - begin),
         wire.subspan(first, EncodedBytes(weights.format, end) - first));
}

void WeightsDraft::Fill(std::span<const float> all) const {
  std::copy(all.begin(), all.end(), values.begin());
  Finish(0, values.size());
}

WeightsPool::WeightsPool(uint64_t version, std::span<const float> values, v1::NumberFormat wire)
    : elements_(values.size()), wire_(wire) {
  const WeightsDraft first = Begin(version);
  first.Fill(values);
  Publish(first);
}

WeightsDraft WeightsPool::Begin(uint64_t version) {
  auto spare = std::find_if(buffers_.begin(), buffers_.end(), [](const std::shared_ptr<Buffer>& buffer) {
    return !buffer->held.load(std::memory_order_acquire);
  });
  if (spare == buffers_.end()) {
    spare = buffers_.insert(spare, std::make_shared<Buffer>());
    (*spare)->values = AlignedBuffer<float>(elements_);
    if (IsNarrow(wire_)) (*spare)->wire = AlignedBuffer<std::byte>(EncodedBytes(wire_, elements_));
  }
  const std::shared_ptr<Buffer>& buffer = *spare;
  buffer->held.store(true, std::memory_order_relaxed);
  // The deleter owns the buffer, so that a version may outlive the pool.
  std::shared_ptr<const void> owner(buffer->values.data(),
                                    [buffer](const void*) { buffer->held.store(false, std::memory_order_release); });
  const std::span<float> values = buffer->values.span();
  const std::span<const std::byte> wire = IsNarrow(wire_) ? buffer->wire.span() : std::as_bytes(values);
  return {values, {version, values, wire_, wire, std::move(owner)}, buffer->wire.span()};
}

}  // namespace millrace
