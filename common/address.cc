#include "common/address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr size_t kUnixPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;
constexpr int kBacklog = 128;

absl::Status BindError(int error, const Address& address) {
  const std::string what = absl::StrCat("cannot listen on ", address.ToString(), ": ");
  if (error == EADDRINUSE) return absl::AlreadyExistsError(absl::StrCat(what, "address already in use"));
  return absl::Status(absl::ErrnoToStatusCode(error), absl::StrCat(what, std::strerror(error)));
}

sockaddr_un UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// Does a process answer at the Unix socket?
bool IsAnswered(const sockaddr_un& address) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const bool answered = result == 0 || errno == EAGAIN;  // EAGAIN: its backlog is full
  close(fd);
  return answered;
}

// Binds and listens; the descriptor, or -1 and errno.
int BindAndListen(int family, const sockaddr* address, socklen_t length) {
  const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (family != AF_UNIX) {
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);  // a port in TIME_WAIT is free
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);  // inherited by accepted connections
  }
  if (bind(fd, address, length) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

absl::StatusOr<int> BindUnix(const Address& address) {
  const sockaddr_un name = UnixAddress(address.unix_path);
  const auto* generic = reinterpret_cast<const sockaddr*>(&name);
  int fd = BindAndListen(AF_UNIX, generic, sizeof name);
  if (fd < 0 && errno == EADDRINUSE && !IsAnswered(name)) {
    unlink(address.unix_path.c_str());  // left by a process that is no more
    fd = BindAndListen(AF_UNIX, generic, sizeof name);
  }
  if (fd < 0) return BindError(errno, address);
  return fd;
}

// On success `address` gets the real port.
absl::StatusOr<int> BindTcp(Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int result = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (result != 0) {
    return absl::NotFoundError(absl::StrCat("cannot listen on ", address.ToString(), ": ", gai_strerror(result)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  int error = EADDRNOTAVAIL;
  for (const addrinfo* candidate = found; candidate != nullptr; candidate = candidate->ai_next) {
    const int fd = BindAndListen(candidate->ai_family, candidate->ai_addr, candidate->ai_addrlen);
    if (fd < 0) {
      error = errno;
      continue;
    }
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
    address.port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                                     : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
    return fd;
  }
  return BindError(error, address);
}

}  // namespace

std::string Address::ToString() const {
  if (is_unix()) return absl::StrCat(ToAbsl(kUnixPrefix), unix_path);
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return is_ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

bool Address::is_local() const { return is_unix() || host == "localhost" || host == "::1" || host.starts_with("127."); }

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  const auto bad = [&](absl::string_view fault) {
    return absl::InvalidArgumentError(absl::StrCat("bad address '", ToAbsl(text), "': ", fault));
  };
  Address address;
  if (text.starts_with(kUnixPrefix)) {
    address.unix_path = text.substr(kUnixPrefix.size());
    if (address.unix_path.empty()) return bad("no path after unix:");
    if (address.unix_path.size() > kUnixPathBytesMax) {
      return bad(absl::StrCat("the path is longer than ", kUnixPathBytesMax, " bytes"));
    }
    if (address.unix_path.find('\0') != std::string::npos) return bad("the path contains a zero byte");
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return bad("want HOST:PORT or unix:/path");
  std::string_view host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad("an IPv6 host needs brackets, as in [::1]:80");
  }
  if (host.empty()) return bad("no host before the port");
  uint32_t port;
  const std::string_view digits = text.substr(colon + 1);
  if (digits.find_first_not_of("0123456789") != std::string_view::npos || !absl::SimpleAtoi(ToAbsl(digits), &port) ||
      port > UINT16_MAX) {
    return bad("the port is not a number from 0 to 65535");
  }
  address.host = host;
  address.port = static_cast<uint16_t>(port);
  return address;
}

absl::StatusOr<ListeningSocket> ListeningSocket::Bind(const Address& address) {
  Address bound = address;
  MILLRACE_ASSIGN_OR_RETURN(const int fd, bound.is_unix() ? BindUnix(bound) : BindTcp(bound));
  return ListeningSocket(std::move(bound), fd);
}

ListeningSocket::ListeningSocket(Address address, int fd) : address_(std::move(address)), fd_(fd) {}

ListeningSocket::ListeningSocket(ListeningSocket&& other) noexcept
    : address_(std::move(other.address_)), fd_(std::exchange(other.fd_, -1)) {}

ListeningSocket& ListeningSocket::operator=(ListeningSocket&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(fd_, other.fd_);
  return *this;
}

ListeningSocket::~ListeningSocket() {
  if (fd_ < 0) return;
  close(fd_);
  if (address_.is_unix()) unlink(address_.unix_path.c_str());
}

int ListeningSocket::Release() { return std::exchange(fd_, -1); }

}  // namespace millrace
