#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

class Metrics;

struct HttpRequest {
  std::string method;                          // "GET"
  std::string path;                            // decoded, without the query
  std::vector<std::string> captures;           // what the groups of the route's pattern matched
  std::map<std::string, std::string> query;    // decoded; of a repeated name the first
  std::map<std::string, std::string> headers;  // names in lower case; of a repeated name the first
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body = {};
};

// What is served besides the built-in pages. `pattern` is an ECMAScript regular expression for the whole path.
// The handler runs on the server's threads, several at once. An exception it throws becomes a 500.
struct HttpRoute {
  std::string method;  // GET, POST, PUT or DELETE
  std::string pattern;
  std::function<HttpResponse(const HttpRequest&)> handler;
};

// The HTTP side of a service, for people, Prometheus and Kubernetes:
//   /metrics   the metrics
//   /healthz   200 while the process can answer at all
//   /readyz    200 "ready", or 503 and what is missing
//   /statusz   what the service is doing and waiting for, as text
// A fixed number of threads and bounded waits and bodies: a slow or hostile client cannot exhaust the process.
class HttpServer {
 public:
  struct Options {
    std::string address = {};                            // as ParseAddress takes it
    const Metrics* metrics = nullptr;                    // null: no /metrics. Must outlive the server
    std::function<absl::Status()> ready = nullptr;       // not OK: not ready, and why. Unset: always ready. Any thread
    std::function<std::string()> status_page = nullptr;  // the text of /statusz. Unset: no such page. Any thread
    int threads = 4;
    size_t max_body_bytes = 4 << 20;  // larger requests get 413
  };

  // Listens and answers. INVALID_ARGUMENT for a malformed address or route, ALREADY_EXISTS if the address is in use,
  // PERMISSION_DENIED.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Options options, std::vector<HttpRoute> routes = {});

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
