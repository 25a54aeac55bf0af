#include "tests/integration/tcp_relay.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <list>
#include <memory>
#include <stdexcept>
#include <vector>

namespace millrace {
namespace {

constexpr int kPollMs = 5;
constexpr size_t kBufferBytes = 256 << 10;

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// Two sockets, and what was read from one and not yet written to the other.
struct Connection {
  explicit Connection(int accepted, int connected) : sockets{accepted, connected} {
    for (const int socket : sockets) {
      const int on = 1;
      setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      fcntl(socket, F_SETFL, O_NONBLOCK);
    }
  }
  ~Connection() {
    for (const int socket : sockets) close(socket);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // False when it is over.
  bool Forward(int from) {
    std::string& pending = buffers[from];
    if (pending.empty()) {
      pending.resize(kBufferBytes);
      const ssize_t count = read(sockets[from], pending.data(), pending.size());
      pending.resize(count > 0 ? static_cast<size_t>(count) : 0);
      if (count == 0 || (count < 0 && errno != EAGAIN)) return false;
    }
    if (pending.empty()) return true;
    const ssize_t count = send(sockets[1 - from], pending.data(), pending.size(), MSG_NOSIGNAL);
    if (count < 0) return errno == EAGAIN;
    pending.erase(0, static_cast<size_t>(count));
    return true;
  }

  const int sockets[2];
  std::string buffers[2];
};

}  // namespace

TcpRelay::TcpRelay() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof address;
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 64) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("cannot listen on the loopback interface");
  }
  address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  thread_ = std::thread(&TcpRelay::Run, this);
}

TcpRelay::~TcpRelay() {
  stop_ = true;
  thread_.join();
  close(listener_);
}

void TcpRelay::ForwardTo(const std::string& address) {
  target_port_ = static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)));
}

void TcpRelay::Run() {
  std::list<std::unique_ptr<Connection>> connections;
  while (!stop_) {
    std::vector<pollfd> watched;
    if (!cut_ && target_port_ != 0) {
      watched.push_back({listener_, POLLIN, 0});
      for (const auto& connection : connections) {
        for (const int from : {0, 1}) {
          const bool read_next = connection->buffers[from].empty();
          watched.push_back(
              {connection->sockets[read_next ? from : 1 - from], static_cast<short>(read_next ? POLLIN : POLLOUT), 0});
        }
      }
    }
    poll(watched.data(), watched.size(), kPollMs);
    if (cut_ || watched.empty()) continue;
    for (auto connection = connections.begin(); connection != connections.end();) {
      const bool goes_on = (*connection)->Forward(0) && (*connection)->Forward(1);
      connection = goes_on ? std::next(connection) : connections.erase(connection);
    }
    if ((watched[0].revents & POLLIN) == 0) continue;
    const int accepted = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    const int connected = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in target = Loopback(target_port_);
    if (connect(connected, reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0) {
      connections.push_back(std::make_unique<Connection>(accepted, connected));
    } else {
      close(accepted);
      close(connected);
    }
  }
}

}  // namespace millrace
