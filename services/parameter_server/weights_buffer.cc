#include "services/parameter_server/weights_buffer.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace millrace {

WeightsPool::WeightsPool(uint64_t version, std::span<const float> values) : buffer_(std::make_shared<Buffer>()) {
  buffer_->values = AlignedBuffer<float>(values.size());
  std::copy(values.begin(), values.end(), buffer_->values.data());
  buffers_.push_back(buffer_);
  Publish(version);
}

std::span<float> WeightsPool::BeginNext() {
  current_ = {};  // our own hold
  if (!IsFree(*buffer_)) buffer_ = prepared_ != nullptr ? prepared_ : CopyToSpare();
  prepared_.reset();
  return buffer_->values.span();
}

void WeightsPool::PrepareNext() {
  if (prepared_ == nullptr) prepared_ = CopyToSpare();
}

std::shared_ptr<WeightsPool::Buffer> WeightsPool::CopyToSpare() {
  auto spare = std::find_if(buffers_.begin(), buffers_.end(), [](const auto& buffer) { return IsFree(*buffer); });
  if (spare == buffers_.end()) {
    buffers_.push_back(std::make_shared<Buffer>());
    buffers_.back()->values = AlignedBuffer<float>(buffer_->values.size());
    spare = std::prev(buffers_.end());
  }
  std::memcpy((*spare)->values.data(), buffer_->values.data(), buffer_->values.span().size_bytes());
  return *spare;
}

void WeightsPool::Publish(uint64_t version) {
  buffer_->held.store(true, std::memory_order_relaxed);
  // The deleter owns the buffer, so that a version may outlive the pool.
  std::shared_ptr<const void> owner(buffer_->values.data(), [buffer = buffer_](const void*) {
    buffer->held.store(false, std::memory_order_release);
  });
  current_ = {version, buffer_->values.span(), std::move(owner)};
}

}  // namespace millrace
