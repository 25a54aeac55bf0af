#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace grpc {
class Server;
class ServerCredentials;
class Service;
}  // namespace grpc

namespace millrace {

class Metrics;
class RpcMonitor;

// What every gRPC server of the project has: health (grpc.health.v1 Check and Watch), reflection, keepalive, message
// limits, metrics per method and code, a port of its own, and an orderly end.
//
// Threads: handlers run on gRPC's threads. All methods may be called from any thread.
class GrpcServer {
 public:
  struct Options {
    std::string address = {};    // as ParseAddress takes it
    Metrics* metrics = nullptr;  // must outlive the server; null: none
    // Null: plain text, and so is a Unix socket, which only this machine sees.
    std::shared_ptr<grpc::ServerCredentials> credentials = nullptr;
    // File of the bearer token that every call must show (AskForToken); empty: none. Needs credentials; a Unix socket
    // asks for none.
    std::string token_file = {};
    // A connection that is older takes no more calls: the peer is asked to make a new one, and calls in flight end on
    // the old one. Up to a tenth more or less. Unlike Drain this fails no call that is on its way.
    absl::Duration connection_age_max = absl::InfiniteDuration();
  };

  // Listens and answers. `services` must outlive the server. Health says NOT_SERVING until SetServing(true).
  // INVALID_ARGUMENT for a malformed address, or a token without credentials; ALREADY_EXISTS if the address is in use,
  // PERMISSION_DENIED.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const Options& options,
                                                           const std::vector<grpc::Service*>& services);

  // Ends at once if Drain has not been called: calls in flight are cancelled, and waited for.
  ~GrpcServer();
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  // Where to dial, with the real port.
  const std::string& address() const { return address_; }

  // What grpc.health.v1 answers for the whole server (service name ""). Watchers are told of a change.
  void SetServing(bool serving);
  // What it answers for service name `name` from now on, until SetServing for the whole server, which is for all names
  // that were ever given here, or Drain. Others are NOT_FOUND.
  void SetServing(const std::string& name, bool serving);

  // Stops accepting calls, gives those in flight `grace` to end, cancels the rest, and returns when no handler runs.
  // Long streams should be ended by their services before this. Health watches and idle
  // connections do not hold it up. Second call: no effect.
  void Drain(absl::Duration grace);

 private:
  GrpcServer(std::string address, std::shared_ptr<RpcMonitor> monitor, std::unique_ptr<grpc::Server> server);

  const std::string address_;
  const std::shared_ptr<RpcMonitor> monitor_;
  const std::unique_ptr<grpc::Server> server_;
};

}  // namespace millrace
