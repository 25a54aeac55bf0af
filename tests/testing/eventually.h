#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace millrace {

// Waits until `condition` holds, for what another thread or process does in its own time. False after 20 seconds.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace millrace
