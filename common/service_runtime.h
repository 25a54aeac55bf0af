#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/http_server.h"
#include "common/mutex.h"
#include "common/shutdown.h"
#include "common/tls.h"

namespace CLI {
class App;
}
namespace grpc {
class Service;
}

namespace millrace {

class Metrics;

// The flags that every service has. What a field holds when AddServiceFlags is called is the flag's default.
struct ServiceFlags {
  std::string listen = {};       // gRPC; empty when AddServiceFlags is called: the service has no --listen
  std::string http_listen = {};  // HTTP; may be set empty to have none
  std::string log_level = "info";
  std::string log_format = "text";
  int drain_grace_ms = 5000;
  int connection_age_max_ms = 0;  // of gRPC, for services that have a flag for it; 0: any
  TlsFiles tls = {};
  std::string run_token_file = {};  // what the parts of one training run show each other; empty: nothing
  bool asks_for_run_token = true;   // of its callers; false for a service that others than these parts call
  bool insecure = false;            // plain text even where others than this machine can listen in
  int parent_pid = 0;               // not 0: the process that started this one and without which it must not go on
};

// Adds --listen, --http-listen, --log-level, --log-format, --drain-grace-ms, --tls-cert, --tls-key, --tls-ca,
// --run-token-file, --insecure, --parent-pid, and --healthcheck, which ends the program with kExitOk if the service
// that was given the same --http-listen is alive; it needs none of the flags that are otherwise required. `flags` must
// outlive the parsing.
void AddServiceFlags(CLI::App& app, ServiceFlags& flags);

// The addresses a service listens on, with real ports; empty where there is no listener.
struct ListenAddresses {
  std::string grpc;
  std::string http;
};

// What a service gets from the process that runs it. Outlives the service. Any thread.
class ServiceContext {
 public:
  ServiceContext(Metrics& metrics, ShutdownSignals& signals,
                 std::shared_ptr<grpc::ChannelCredentials> channel_credentials = nullptr)
      : metrics_(metrics), signals_(signals), channel_credentials_(std::move(channel_credentials)) {}

  Metrics& metrics() { return metrics_; }
  // For MakeChannel: how other services are spoken to.
  const std::shared_ptr<grpc::ChannelCredentials>& channel_credentials() const { return channel_credentials_; }

  // Ends the process in an orderly way, as SIGTERM would. Not OK: `why` is logged and its code becomes the exit code.
  // The first call counts.
  void RequestStop(absl::Status why);

  // The first reason given to RequestStop; OK if there was none.
  absl::Status stop_reason() const;

 private:
  Metrics& metrics_;
  ShutdownSignals& signals_;
  const std::shared_ptr<grpc::ChannelCredentials> channel_credentials_;
  mutable Mutex mutex_;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status stop_reason_ ABSL_GUARDED_BY(mutex_);
};

// One service, as RunService drives it:
//   constructed -> listeners answer -> Started -> ... SIGTERM, SIGINT or RequestStop ... -> Drain -> gRPC drained ->
//   listeners closed -> destroyed
// Calls can arrive before Started and during Drain.
class Service {
 public:
  virtual ~Service() = default;

  // Registered with the gRPC server; owned by the service. Not called if there is no --listen.
  virtual std::vector<grpc::Service*> GrpcServices() { return {}; }
  // OK once the service can do its work, else what is missing: /readyz and grpc.health.v1. Any thread; called often.
  virtual absl::Status Ready() { return absl::OkStatus(); }
  // Names besides "" that grpc.health.v1 answers SERVING for while the service is ready. NOT_SERVING for those that
  // were in the list before.
  virtual std::vector<std::string> HealthNames() { return {}; }
  // What the service answers over HTTP beside its pages.
  virtual HttpApi Api() { return {}; }
  // What the service does and waits for. Any thread.
  virtual std::string StatusPage() = 0;
  // The listeners are up: start the threads that wait for peers. Returns soon; an error ends the process.
  virtual absl::Status Started(const ListenAddresses& addresses) {
    (void)addresses;
    return absl::OkStatus();
  }
  // End long streams and threads within `grace`. New work is refused.
  virtual void Drain(absl::Duration grace) { (void)grace; }
};

// Makes the service. It may take the time that loading takes, but must not wait for peers: signals are not looked at
// until it returns. An error ends the process with its exit code.
using ServiceFactory = std::function<absl::StatusOr<std::unique_ptr<Service>>(ServiceContext&)>;

// The life of a service process, from parsed flags to exit code; what main returns. Sets up logging and signals, makes
// the service, opens the listeners, prints one line
//   LISTENING grpc=ADDRESS http=ADDRESS
// to stdout ("-" for an absent listener), keeps gRPC health in step with Ready(), waits, drains. A SIGINT during the
// drain ends the process at once. Call first thing after parsing, before any thread is started.
int RunService(std::string_view name, const ServiceFlags& flags, const ServiceFactory& make_service);

}  // namespace millrace
