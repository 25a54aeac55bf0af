#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

namespace millrace {

// A network between two processes that can go away: forwards TCP connections from its own address to another one. While
// it is cut nothing passes and nothing is closed, as when a cable is pulled. Its address is known before that of what
// is behind it. Threads: any.
class TcpRelay {
 public:
  TcpRelay();
  ~TcpRelay();

  const std::string& address() const { return address_; }
  // "127.0.0.1:PORT"; connections wait until it is known.
  void ForwardTo(const std::string& address);
  void Cut() { cut_ = true; }
  void Mend() { cut_ = false; }

 private:
  void Run();

  int listener_;
  std::string address_;
  std::atomic<uint16_t> target_port_ = 0;
  std::atomic<bool> cut_ = false;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace millrace
