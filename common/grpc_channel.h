#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace grpc {
class ChannelCredentials;
}

namespace millrace {

// A channel to `address` (`HOST:PORT` or `unix:/path`) for use inside the cluster: encrypted as `credentials` say
// (null: plain text, and so is a Unix socket, which only this machine sees), keepalive that finds a vanished host in 15
// s, messages up to 64 MiB, reconnects after 100 ms to 2 s, no retries behind our back (the callers know what may be
// repeated), and no HTTP proxy from the environment. It connects when first used; a wrong address shows as UNAVAILABLE
// then. Any thread.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

// The same, but gRPC sends a call once more that no server has seen (gRFC A6, transparent retries), as when a server
// that is about to end asks its clients to connect anew: what any client of a model service has by default.
std::shared_ptr<grpc::Channel> MakeRetryingChannel(const std::string& address,
                                                   const std::shared_ptr<grpc::ChannelCredentials>& credentials);

// Every call needs one: the call fails with DEADLINE_EXCEEDED `timeout` from now.
void SetDeadline(grpc::ClientContext& context, absl::Duration timeout);

}  // namespace millrace
