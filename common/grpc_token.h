// Bearer tokens at gRPC calls: what a server asks of every call, and what a channel shows at every call. They go only
// over encrypted connections: gRPC itself refuses to send them over others.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "grpcpp/security/auth_metadata_processor.h"

namespace grpc {
class ChannelCredentials;
}

namespace millrace {

class RpcMonitor;

// For grpc::ServerCredentials: lets in the calls that show a token of the file (common/bearer_token.h), and all calls
// of gRPC's own services, for probes. Others end as TokenCheck::Check says before their handler is reached, and are
// counted by `monitor`. Any thread; the file is read at every call.
std::shared_ptr<grpc::AuthMetadataProcessor> AskForToken(const std::string& path, std::shared_ptr<RpcMonitor> monitor);

// `credentials`, with the first token of the file shown at every call. UNAVAILABLE for calls while the file cannot be
// read.
std::shared_ptr<grpc::ChannelCredentials> ShowToken(const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                                    const std::string& path);

// Of the flag --run-token-file: INVALID_ARGUMENT unless `encrypted`; errors of ReadToken, with the flag's name.
absl::Status CheckRunTokenFile(const std::string& path, bool encrypted);

}  // namespace millrace
