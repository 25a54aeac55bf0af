#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace millrace {

// A fixed number of zeroed elements that begins on a cache line, as vector code and shard boundaries want it. It owns
// its memory, moves without copying, and never grows. An absurd size is std::bad_alloc: check sizes that come from
// outside first.
template <typename T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  static constexpr size_t kAlignmentBytes = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t count) : data_(Allocate(count)), count_(count) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::move(other.data_)), count_(std::exchange(other.count_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    count_ = std::exchange(other.count_, 0);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  std::span<T> span() { return {data_.get(), count_}; }
  std::span<const T> span() const { return {data_.get(), count_}; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  using Owner = std::unique_ptr<T[], Free>;

  static Owner Allocate(size_t count) {
    if (count == 0) return nullptr;
    if (count > (SIZE_MAX - kAlignmentBytes) / sizeof(T)) throw std::bad_alloc();
    const size_t bytes = (count * sizeof(T) + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    void* data = std::aligned_alloc(kAlignmentBytes, bytes);
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, 0, bytes);
    return Owner(static_cast<T*>(data));
  }

  Owner data_;
  size_t count_ = 0;
};

}  // namespace millrace
