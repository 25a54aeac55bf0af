#include "common/grpc_server.h"

#include <grpc/grpc.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/grpc_library.h"
#include "common/grpc_token.h"
#include "common/limits.h"
#include "common/mutex.h"
#include "common/rpc_monitor.h"
#include "common/status_macros.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace millrace {
namespace {

// A silent peer is pinged after kKeepaliveTimeMs and given up kKeepaliveTimeoutMs later. Peers may ping as often as our
// own channels do (grpc_channel.cc) and then some.
constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
constexpr int kMinPeerPingIntervalMs = 5'000;
// Of handlers that block, each of which holds a thread. Calls beyond it get RESOURCE_EXHAUSTED.
constexpr int kMaxThreads = 512;
// During a drain. Also the time that a call has to get from the connection to its handler.
constexpr absl::Duration kIdleCheckInterval = absl::Milliseconds(20);

void EnableBuiltInServices() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::health::v1::HealthCheckRequest::descriptor();  // has it linked in, for reflection
  });
}

void SetChannelArguments(grpc::ServerBuilder& builder, absl::Duration connection_age_max) {
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kCallsPerConnectionMax);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPeerPingIntervalMs);
  if (connection_age_max != absl::InfiniteDuration()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               static_cast<int>(absl::ToInt64Milliseconds(connection_age_max)));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const Options& options,
                                                              const std::vector<grpc::Service*>& services) {
  MILLRACE_ASSIGN_OR_RETURN(Address address, ParseAddress(options.address));
  if (!options.token_file.empty() && options.credentials == nullptr && !address.is_unix()) {
    return absl::InvalidArgumentError(absl::StrCat("a token is not asked for in plain text, as on ", options.address));
  }
  if (address.is_unix() || address.port != 0) {
    // gRPC says neither why it cannot listen, nor whether it took a Unix socket from a living server. Trying first
    // does.
    MILLRACE_RETURN_IF_ERROR(ListeningSocket::Bind(address).status());
  }

  KeepGrpcUp();
  EnableBuiltInServices();
  auto monitor = std::make_shared<RpcMonitor>(options.metrics);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(RpcMonitor::MakeFactory(monitor));

  grpc::ServerBuilder builder;
  int port = 0;
  const bool plain = options.credentials == nullptr || address.is_unix();
  if (!plain && !options.token_file.empty()) {
    options.credentials->SetAuthMetadataProcessor(AskForToken(options.token_file, monitor));
  }
  builder.AddListeningPort(address.ToString(), plain ? grpc::InsecureServerCredentials() : options.credentials, &port);
  SetChannelArguments(builder, options.connection_age_max);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.SetResourceQuota(grpc::ResourceQuota("server").SetMaxThreads(kMaxThreads));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (grpc::Service* service : services) builder.RegisterService(service);

  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address.ToString()));
  }
  server->GetHealthCheckService()->SetServingStatus(false);
  if (!address.is_unix()) address.port = static_cast<uint16_t>(port);
  return std::unique_ptr<GrpcServer>(new GrpcServer(address.ToString(), std::move(monitor), std::move(server)));
}

GrpcServer::GrpcServer(std::string address, std::shared_ptr<RpcMonitor> monitor, std::unique_ptr<grpc::Server> server)
    : address_(std::move(address)), monitor_(std::move(monitor)), server_(std::move(server)) {}

GrpcServer::~GrpcServer() { Drain(absl::ZeroDuration()); }

void GrpcServer::SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }

void GrpcServer::SetServing(const std::string& name, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(name, serving);
}

void GrpcServer::Drain(absl::Duration grace) {
  // For good: later calls of SetServing do nothing.
  server_->GetHealthCheckService()->Shutdown();

  // gRPC waits not only for calls but for the peers to hang up, and an idle client may take seconds to read our
  // goodbye. So hang up ourselves once the last call is over.
  Mutex mutex;
  CondVar changed;
  bool ended = false;
  std::thread shutdown([&, deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace)] {
    server_->Shutdown(deadline);
    MutexLock lock(&mutex);
    ended = true;
    changed.Signal();
  });
  {
    MutexLock lock(&mutex);
    while (!ended) {
      if (changed.WaitWithTimeout(&mutex, kIdleCheckInterval) && monitor_->idle()) {
        grpc_server_cancel_all_calls(server_->c_server());
      }
    }
  }
  shutdown.join();
  server_->Wait();
}

}  // namespace millrace
