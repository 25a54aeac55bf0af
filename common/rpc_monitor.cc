#include "common/rpc_monitor.h"

#include <string_view>

#include "common/grpc_status.h"

namespace millrace {
namespace {

// A peer may call methods that do not exist; beyond this many names they share one series.
constexpr size_t kMethodsMax = 200;

using grpc::experimental::InterceptionHookPoints;

}  // namespace

bool IsBuiltInMethod(std::string_view method) { return method.starts_with("/grpc."); }

// One call; made when it begins, destroyed with its server context.
class MonitoredCall : public grpc::experimental::Interceptor {
 public:
  MonitoredCall(std::shared_ptr<RpcMonitor> monitor, grpc::experimental::ServerRpcInfo* info)
      : monitor_(std::move(monitor)), method_(monitor_->CallStarted(info->method())) {}

  ~MonitoredCall() override {
    End(grpc::StatusCode::CANCELLED);
    monitor_->CallDestroyed(method_);
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    // Counted before the client can see the end, so that what it reads at /metrics afterwards includes its own call.
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      End(methods->GetSendStatus().error_code());
    }
    methods->Proceed();
  }

 private:
  void End(grpc::StatusCode code) {
    if (ended_) return;
    ended_ = true;
    monitor_->CallEnded(method_, code, std::chrono::steady_clock::now() - start_);
  }

  const std::shared_ptr<RpcMonitor> monitor_;
  RpcMonitor::Method* const method_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool ended_ = false;  // gRPC orders the status and the destruction, which are all that touch it
};

namespace {

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(std::shared_ptr<RpcMonitor> monitor) : monitor_(std::move(monitor)) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new MonitoredCall(monitor_, info);  // gRPC owns it
  }

 private:
  const std::shared_ptr<RpcMonitor> monitor_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> RpcMonitor::MakeFactory(
    std::shared_ptr<RpcMonitor> monitor) {
  return std::make_unique<Factory>(std::move(monitor));
}

RpcMonitor::Method* RpcMonitor::CallStarted(const char* name) {
  Method* method;
  {
    MutexLock lock(&mutex_);
    auto found = methods_.find(name);
    if (found == methods_.end()) {
      const std::string label = methods_.size() < kMethodsMax ? name : "other";
      found = methods_.try_emplace(label).first;
      found->second.label = label;
      found->second.built_in = IsBuiltInMethod(label);
    }
    method = &found->second;
    if (!method->built_in) ++in_flight_;
    if (metrics_ != nullptr && method->started == nullptr) {
      const Metrics::Labels labels = {{"grpc_method", method->label}};
      method->started = &metrics_->Counter("grpc_server_started_total", "Calls begun.", labels);
      method->seconds = &metrics_->Histogram("grpc_server_handling_seconds", "Time from begin to end of a call.",
                                             LatencyBuckets(), labels);
    }
  }
  if (method->started != nullptr) method->started->Increment();
  return method;
}

void RpcMonitor::CallEnded(Method* method, grpc::StatusCode code, std::chrono::steady_clock::duration elapsed) {
  CountHandled(method, code);
  if (method->seconds != nullptr) method->seconds->Observe(std::chrono::duration<double>(elapsed).count());
}

void RpcMonitor::CountHandled(Method* method, grpc::StatusCode code) {
  if (metrics_ == nullptr) return;
  const size_t index = static_cast<size_t>(code) < method->handled.size() ? code : grpc::StatusCode::UNKNOWN;
  prometheus::Counter* handled;
  {
    MutexLock lock(&mutex_);
    prometheus::Counter*& slot = method->handled[index];
    if (slot == nullptr) {
      slot = &metrics_->Counter("grpc_server_handled_total", "Calls ended.",
                                {{"grpc_method", method->label}, {"grpc_code", std::string(GrpcCodeName(code))}});
    }
    handled = slot;
  }
  handled->Increment();
}

void RpcMonitor::CallDestroyed(Method* method) {
  MutexLock lock(&mutex_);
  if (!method->built_in) --in_flight_;
}

void RpcMonitor::CallRefused(const std::string& method, grpc::StatusCode code) {
  Method* const call = CallStarted(method.c_str());
  CountHandled(call, code);
  CallDestroyed(call);
}

bool RpcMonitor::idle() const {
  MutexLock lock(&mutex_);
  return in_flight_ == 0;
}

}  // namespace millrace
