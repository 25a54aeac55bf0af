#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "common/address.h"

namespace millrace {

struct HttpReply {
  int status = 0;  // 0: no answer
  std::string head;
  std::string body;
};

// A blocking connection to a literal IPv4 address or a Unix socket; -1 if it is refused. The caller closes it.
inline int ConnectTo(const std::string& address_text) {
  const Address address = ParseAddress(address_text).value();
  sockaddr_un unix_name{};
  sockaddr_in tcp_name{};
  const sockaddr* name = reinterpret_cast<const sockaddr*>(&tcp_name);
  socklen_t length = sizeof tcp_name;
  if (address.is_unix()) {
    unix_name.sun_family = AF_UNIX;
    std::memcpy(unix_name.sun_path, address.unix_path.data(), address.unix_path.size());
    name = reinterpret_cast<const sockaddr*>(&unix_name);
    length = sizeof unix_name;
  } else {
    tcp_name.sin_family = AF_INET;
    tcp_name.sin_port = htons(address.port);
    inet_pton(AF_INET, address.host.c_str(), &tcp_name.sin_addr);
  }
  const int fd = socket(name->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, name, length) == 0) return fd;
  close(fd);
  return -1;
}

// One HTTP request on a connection of its own. `headers`: further ones, each with its line end.
inline HttpReply HttpFetch(const std::string& address, const std::string& path, const std::string& method = "GET",
                           const std::string& body = "", const std::string& headers = "") {
  HttpReply reply;
  const int fd = ConnectTo(address);
  if (fd < 0) return reply;
  const std::string request = method + " " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: " +
                              std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
  std::string answer;
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    ssize_t count;
    while ((count = read(fd, buffer, sizeof buffer)) > 0) answer.append(buffer, static_cast<size_t>(count));
  }
  close(fd);
  const size_t head_end = answer.find("\r\n\r\n");
  if (head_end == std::string::npos) return reply;
  reply.head = answer.substr(0, head_end);
  reply.body = answer.substr(head_end + 4);
  reply.status = std::atoi(reply.head.c_str() + std::strlen("HTTP/1.1 "));
  return reply;
}

}  // namespace millrace
