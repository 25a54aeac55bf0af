#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "absl/base/thread_annotations.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "grpcpp/support/server_interceptor.h"
#include "grpcpp/support/status.h"

namespace millrace {

// Sees every call of a gRPC server begin and end. Counts them:
//   grpc_server_started_total{grpc_method}            calls begun
//   grpc_server_handled_total{grpc_method,grpc_code}  calls ended; one that ends without a status is CANCELLED
//   grpc_server_handling_seconds{grpc_method}         histogram of the time between
// and remembers the health watches, which last as long as their clients like, so that a drain can end them.
// `grpc_method` is "/package.Service/Method". Any thread.
class RpcMonitor {
 public:
  // `metrics` may be null, otherwise it must outlive the monitor.
  explicit RpcMonitor(Metrics* metrics) : metrics_(metrics) {}

  // For grpc::ServerBuilder. The factory and its calls share the ownership of the monitor.
  static std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeFactory(
      std::shared_ptr<RpcMonitor> monitor);

  // Cancels the health watches under way.
  void EndHealthWatches();

 private:
  friend class MonitoredCall;

  // The series of one method; pointers are null while not needed, or without metrics.
  struct Method {
    std::string label;
    prometheus::Counter* started = nullptr;
    prometheus::Histogram* seconds = nullptr;
    std::array<prometheus::Counter*, 17> handled{};  // by status code
  };

  // The returned method lives as long as the monitor.
  Method* CallStarted(const char* name);
  void CallEnded(Method* method, grpc::StatusCode code, std::chrono::steady_clock::duration elapsed);
  void WatchStarted(grpc::ServerContextBase* context);
  void WatchEnded(grpc::ServerContextBase* context);

  Metrics* const metrics_;

  Mutex mutex_;
  std::unordered_map<std::string, Method> methods_ ABSL_GUARDED_BY(mutex_);

  // Recursive because cancelling a watch may run its end, and so WatchEnded, on the cancelling thread; and held while
  // cancelling so that another thread's WatchEnded keeps the context alive until then. Not annotated for that reason.
  std::recursive_mutex watches_mutex_;
  std::unordered_set<grpc::ServerContextBase*> watches_;
};

}  // namespace millrace
