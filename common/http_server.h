#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tls.h"

namespace millrace {

class Metrics;

// The HTTP side of a service, for people, Prometheus and Kubernetes:
//   /metrics   the metrics
//   /healthz   200 while the process can answer at all
//   /readyz    200 "ready", or 503 and what is missing
//   /statusz   what the service is doing and waiting for, as text
// A fixed number of threads and bounded waits and bodies: a slow or hostile client cannot exhaust the process. A page
// that throws an exception is a 500.
class HttpServer {
 public:
  struct Options {
    std::string address = {};          // as ParseAddress takes it
    const Metrics* metrics = nullptr;  // null: no /metrics. Must outlive the server
    TlsFiles tls = {};  // checked; without a certificate, and on a Unix socket, plain text. Clients need none
    std::function<absl::Status()> ready = nullptr;       // not OK: not ready, and why. Unset: always ready. Any thread
    std::function<std::string()> status_page = nullptr;  // the text of /statusz. Unset: no such page. Any thread
  };

  // Listens and answers. INVALID_ARGUMENT for a malformed address, ALREADY_EXISTS if the address is in use,
  // PERMISSION_DENIED.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Options options);

  // Waits for requests in progress; a connection that says nothing is dropped after its time-out of a few seconds.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Where to connect, with the real port.
  const std::string& address() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
