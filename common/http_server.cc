#include "common/http_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "httplib.h"

namespace millrace {
namespace {

constexpr int kThreads = 4;
constexpr time_t kKeepAliveSeconds = 2;  // an idle connection holds a thread, so not for long
constexpr time_t kReadTimeoutSeconds = 5;
constexpr time_t kWriteTimeoutSeconds = 5;
constexpr size_t kWaitingConnectionsMax = 64;
constexpr size_t kBodyBytesMax = 64 << 10;  // no page takes one; larger requests get 413
constexpr size_t kPathBytesMax = 512;       // matched by a recursion a character deep; longer ones get 414
constexpr char kText[] = "text/plain; charset=utf-8";
constexpr char kPrometheusText[] = "text/plain; version=0.0.4; charset=utf-8";

// A fixed number of threads over a bounded queue of connections. A full queue holds up the accepting thread, so that
// what follows waits in the kernel's bounded backlog.
class BoundedTaskQueue : public httplib::TaskQueue {
 public:
  explicit BoundedTaskQueue(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }

  void enqueue(std::function<void()> task) override {
    MutexLock lock(&mutex_);
    while (tasks_.size() >= kWaitingConnectionsMax) room_.Wait(&mutex_);
    tasks_.push_back(std::move(task));
    work_.Signal();
  }

  // Runs what is queued, for each task closes its connection, then ends the threads.
  void shutdown() override {
    {
      MutexLock lock(&mutex_);
      ending_ = true;
      work_.SignalAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> task;
      {
        MutexLock lock(&mutex_);
        while (tasks_.empty() && !ending_) work_.Wait(&mutex_);
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
        room_.Signal();
      }
      task();
    }
  }

  Mutex mutex_;
  CondVar work_;
  CondVar room_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

// cpp-httplib over a socket that we bound: with clear errors, Unix sockets, and without the SO_REUSEPORT it would set.
template <typename Base>
class Adopting : public Base {
 public:
  template <typename... Arguments>
  explicit Adopting(int listening_fd, const Arguments&... arguments) : Base(arguments...) {
    this->svr_sock_ = listening_fd;
    // Head and body are written apart, and the body must not wait for the head's acknowledgement. Accepted sockets
    // inherit it; Unix sockets have no such option.
    const int yes = 1;
    setsockopt(listening_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  }
};

std::unique_ptr<httplib::Server> AdoptSocket(int listening_fd, const TlsFiles& tls) {
  if (!tls.shows_itself()) return std::make_unique<Adopting<httplib::Server>>(listening_fd);
  return std::make_unique<Adopting<httplib::SSLServer>>(
      listening_fd, [&tls](SSL_CTX& context) { return ServeFromFiles(context, tls); });
}

void Send(httplib::Response& response, int status, const std::string& body, const std::string& content_type = kText) {
  response.status = status;
  response.set_content(body, content_type);
}

std::string DescribeException(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "unknown exception";
  }
}

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {}

  absl::Status Start() {
    MILLRACE_ASSIGN_OR_RETURN(const Address address, ParseAddress(options_.address));
    MILLRACE_ASSIGN_OR_RETURN(ListeningSocket socket, ListeningSocket::Bind(address));
    bound_ = socket.address();
    address_ = bound_.ToString();
    server_ = AdoptSocket(socket.Release(), address.is_unix() ? TlsFiles() : options_.tls);
    if (!server_->is_valid()) return absl::InternalError("OpenSSL cannot serve HTTP");
    Configure();
    AddPages();
    thread_ = std::thread([this] { server_->listen_after_bind(); });
    // stop() has no effect on a server that is not running yet.
    while (!server_->is_running()) std::this_thread::yield();
    return absl::OkStatus();
  }

  ~Impl() {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
    if (bound_.is_unix()) unlink(bound_.unix_path.c_str());
  }

  const std::string& address() const { return address_; }

 private:
  void Configure() {
    server_->new_task_queue = [threads = std::max(kThreads, options_.api.threads)] {
      return new BoundedTaskQueue(threads);
    };
    server_->set_keep_alive_timeout(kKeepAliveSeconds);
    server_->set_read_timeout(kReadTimeoutSeconds);
    server_->set_write_timeout(kWriteTimeoutSeconds);
    server_->set_payload_max_length(std::max(kBodyBytesMax, options_.api.body_bytes_max));
    server_->set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      if (request.method == "PRI") {  // of HTTP/2, and the library would read a body for it
        Refuse(request, response, 501, "HTTP/2 is not spoken here");
      } else if (request.path.size() > kPathBytesMax) {
        Refuse(request, response, 414, absl::StrCat("the path is over the limit of ", kPathBytesMax, " bytes"));
      } else {
        return httplib::Server::HandlerResponse::Unhandled;
      }
      return httplib::Server::HandlerResponse::Handled;
    });
    server_->set_exception_handler(
        [](const httplib::Request& request, httplib::Response& response, std::exception_ptr exception) {
          LogError("HTTP handler failed", {{"path", request.path}, {"error", DescribeException(exception)}});
          Send(response, 500, "internal error\n");
        });
  }

  void AddPages() {
    server_->Get("/healthz", [](const httplib::Request&, httplib::Response& response) { Send(response, 200, "ok\n"); });
    server_->Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      const absl::Status ready = options_.ready ? options_.ready() : absl::OkStatus();
      if (ready.ok()) {
        Send(response, 200, "ready\n");
      } else {
        Send(response, 503, absl::StrCat("not ready: ", ready.message(), "\n"));
      }
    });
    if (options_.metrics != nullptr) {
      server_->Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
        Send(response, 200, options_.metrics->Render(), kPrometheusText);
      });
    }
    if (options_.status_page) {
      server_->Get("/statusz", [this](const httplib::Request&, httplib::Response& response) {
        Send(response, 200, options_.status_page());
      });
    }
    const auto without_body = [this](const httplib::Request& request, httplib::Response& response) {
      AnswerApi(request, "", response);
    };
    for (const std::string& page : options_.api.pages) server_->Get(page, without_body);
    for (const std::string& root : options_.api.roots) server_->Get(root + "(/.*)?", without_body);
    // All that have a body, so that none is read but within its limit.
    const auto with_body = [this](const httplib::Request& request, httplib::Response& response,
                                  const httplib::ContentReader& reader) { AnswerBody(request, reader, response); };
    server_->Post(".*", with_body);
    server_->Put(".*", with_body);
    server_->Patch(".*", with_body);
    server_->Delete(".*", with_body);
  }

  bool IsApi(const std::string& path) const {
    return std::any_of(options_.api.roots.begin(), options_.api.roots.end(), [&](const std::string& root) {
      return path.compare(0, root.size(), root) == 0 && (path.size() == root.size() || path[root.size()] == '/');
    });
  }

  void Refuse(const httplib::Request& request, httplib::Response& response, int status,
              const std::string& reason) const {
    if (IsApi(request.path)) {
      Send(response, status, absl::StrCat("{\"error\":\"", reason, "\"}"), "application/json");
    } else {
      Send(response, status, absl::StrCat(reason, "\n"));
    }
  }

  // False: there is no room for it beside the other bodies.
  bool Append(const char* data, size_t size, bool api, std::string& body) {
    if ((body_bytes_ += size) > options_.api.bodies_bytes_max && api) {
      body_bytes_ -= size;
      return false;
    }
    body.append(data, size);
    return true;
  }

  void AnswerBody(const httplib::Request& request, const httplib::ContentReader& reader, httplib::Response& response) {
    if (request.is_multipart_form_data()) return Refuse(request, response, 415, "multipart bodies are not taken");
    const bool api = IsApi(request.path);
    const size_t bytes_max = api ? options_.api.body_bytes_max : kBodyBytesMax;
    const bool compressed = request.has_header("Content-Encoding");
    std::string body;
    bool too_long = false, too_many = false;
    const absl::Cleanup forget = [&] { body_bytes_ -= body.size(); };
    // Without either of these there is no body, and waiting for it would be waiting for the client to hang up.
    if (request.has_header("Content-Length") || request.has_header("Transfer-Encoding")) {
      const bool read = reader([&](const char* data, size_t size) {
        too_long |= body.size() + size > bytes_max;
        if (!too_long && !too_many) too_many = !Append(data, size, api, body);
        // What was sent is read to its end; what it unpacks to may have none.
        return !compressed || (!too_long && !too_many);
      });
      too_long |= !read && response.status == 413;  // by its Content-Length, and so not looked at
      if (!read && !too_long && !too_many) return Refuse(request, response, 400, "the body cannot be read");
    }
    if (too_long) {
      return Refuse(request, response, 413, absl::StrCat("the body is over the limit of ", bytes_max, " bytes"));
    }
    if (too_many) {
      response.set_header("Retry-After", "1");
      return Refuse(
          request, response, 429,
          absl::StrCat("the limit of ", options_.api.bodies_bytes_max, " bytes in bodies at once is reached"));
    }
    if (!api) return Refuse(request, response, 404, "there is nothing here");
    AnswerApi(request, body, response);
  }

  void AnswerApi(const httplib::Request& request, std::string_view body, httplib::Response& response) const {
    const std::string_view method = request.method == "HEAD" ? std::string_view("GET") : request.method;
    HttpRequest asked{.method = method, .path = request.path, .query = {}, .headers = {}, .body = body};
    asked.peer = bound_.is_unix() ? "unix:" : absl::StrCat(request.remote_addr, ":", request.remote_port);
    for (const auto& [name, value] : request.headers) asked.headers.emplace(absl::AsciiStrToLower(name), value);
    asked.query.insert(request.params.begin(), request.params.end());
    HttpResponse answer = options_.api.answer(asked);
    response.status = answer.status;
    for (const auto& [name, value] : answer.headers) response.set_header(name, value);
    response.set_content(std::move(answer.body), answer.content_type);
  }

  const Options options_;
  std::atomic<size_t> body_bytes_ = 0;  // of bodies being read or answered
  std::unique_ptr<httplib::Server> server_;
  Address bound_;
  std::string address_;
  std::thread thread_;  // accepts connections
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Options options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  MILLRACE_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

const std::string& HttpServer::address() const { return impl_->address(); }

}  // namespace millrace
