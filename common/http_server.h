#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tls.h"

namespace millrace {

class Metrics;

struct HttpRequest {
  std::string_view method;                        // "GET" (also of HEAD), "POST" ...
  std::string_view path;                          // percent-decoded, without the query
  std::map<std::string, std::string> query = {};  // decoded
  std::map<std::string, std::string> headers;     // by lower-case name
  std::string_view body;                          // uncompressed
  std::string peer = {};                          // "10.0.0.7:53412", "unix:"
};

struct HttpResponse {
  int status = 200;
  std::string body = {};
  std::string content_type = "application/json";
  std::map<std::string, std::string> headers = {};
};

// What a service answers beside the pages that every service has.
struct HttpApi {
  std::vector<std::string> roots = {};                               // "/v2": it and what is below it. None: no API
  std::vector<std::string> pages = {};                               // "/": only it, and only to be read
  std::function<HttpResponse(const HttpRequest&)> answer = nullptr;  // any thread; may block
  size_t body_bytes_max = 0;                                         // of one body, after decompression; larger is 413
  size_t bodies_bytes_max = 0;  // of all that are being read or answered; more are 429
  // Connections served at once, those for pages among them. One that idles holds its thread for two seconds.
  int threads = 0;
};

// The HTTP side of a service, for people, Prometheus and Kubernetes:
//   /metrics   the metrics
//   /healthz   200 while the process can answer at all
//   /readyz    200 "ready", or 503 and what is missing
//   /statusz   what the service is doing and waiting for, as text
// and, if it is given one, an API. A fixed number of threads and bounded waits and bodies: a slow or hostile client
// cannot exhaust the process. A page that throws an exception is a 500.
class HttpServer {
 public:
  struct Options {
    std::string address = {};          // as ParseAddress takes it
    const Metrics* metrics = nullptr;  // null: no /metrics. Must outlive the server
    TlsFiles tls = {};  // checked; without a certificate, and on a Unix socket, plain text. Clients need none
    std::function<absl::Status()> ready = nullptr;       // not OK: not ready, and why. Unset: always ready. Any thread
    std::function<std::string()> status_page = nullptr;  // the text of /statusz. Unset: no such page. Any thread
    HttpApi api = {};
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
