#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "grpcpp/support/server_interceptor.h"
#include "grpcpp/support/status.h"

namespace millrace {

// Is it a method of a service that gRPC brings along: health, reflection?
bool IsBuiltInMethod(std::string_view method);

// Sees every call of a gRPC server begin and end. Counts them:
//   grpc_server_started_total{grpc_method}            calls begun
//   grpc_server_handled_total{grpc_method,grpc_code}  calls ended; one that ends without a status is CANCELLED
//   grpc_server_handling_seconds{grpc_method}         histogram of the time between
// and knows whether any is in flight, for a drain. `grpc_method` is "/package.Service/Method". Any thread.
class RpcMonitor {
 public:
  // `metrics` may be null, otherwise it must outlive the monitor.
  explicit RpcMonitor(Metrics* metrics) : metrics_(metrics) {}

  // For grpc::ServerBuilder. The factory and its calls share the ownership of the monitor.
  static std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeFactory(
      std::shared_ptr<RpcMonitor> monitor);

  // Counts a call that ended before its handler was reached.
  void CallRefused(const std::string& method, grpc::StatusCode code);

  // Is no call in flight? Those of gRPC's own services (health, reflection) do not count: a watch lasts as long as its
  // client likes.
  bool idle() const;

 private:
  friend class MonitoredCall;

  // The series of one method; pointers are null while not needed, or without metrics.
  struct Method {
    std::string label;
    bool built_in = false;
    prometheus::Counter* started = nullptr;
    prometheus::Histogram* seconds = nullptr;
    std::array<prometheus::Counter*, 17> handled{};  // by status code
  };

  // The returned method lives as long as the monitor.
  Method* CallStarted(const char* name);
  // The handler is done with the call.
  void CallEnded(Method* method, grpc::StatusCode code, std::chrono::steady_clock::duration elapsed);
  void CountHandled(Method* method, grpc::StatusCode code);
  // So is gRPC: what there was to send is sent.
  void CallDestroyed(Method* method);

  Metrics* const metrics_;

  mutable Mutex mutex_;
  std::unordered_map<std::string, Method> methods_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace
