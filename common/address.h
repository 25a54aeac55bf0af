#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// Where a service listens: `HOST:PORT` (`[HOST]:PORT` for IPv6; port 0 lets the system choose) or `unix:/path`.
struct Address {
  std::string host;  // empty for a Unix socket
  uint16_t port = 0;
  std::string unix_path;  // empty for TCP

  bool is_unix() const { return !unix_path.empty(); }
  // Whether only processes of this machine can reach it. Of names only "localhost" counts.
  bool is_local() const;
  // In the form that Parse takes and gRPC dials.
  std::string ToString() const;
};

// INVALID_ARGUMENT, naming the text and the fault, if `text` is neither form, the port is over 65535, or the path is
// longer than a Unix socket's can be (107 bytes).
absl::StatusOr<Address> ParseAddress(std::string_view text);

// A socket that is bound and listens; closed, and a Unix socket's file removed, with the object.
class ListeningSocket {
 public:
  // Without SO_REUSEPORT, so that two servers never share a port in silence; a Unix socket that nobody answers on any
  // more is replaced. ALREADY_EXISTS "address already in use", PERMISSION_DENIED, or NOT_FOUND for a host without an
  // address.
  static absl::StatusOr<ListeningSocket> Bind(const Address& address);

  ListeningSocket(ListeningSocket&& other) noexcept;
  ListeningSocket& operator=(ListeningSocket&& other) noexcept;
  ~ListeningSocket();

  // With the real port.
  const Address& address() const { return address_; }
  int fd() const { return fd_; }
  // The caller closes the descriptor from now on, and removes the file of a Unix socket.
  int Release();

 private:
  ListeningSocket(Address address, int fd);

  Address address_;
  int fd_ = -1;
};

}  // namespace millrace
