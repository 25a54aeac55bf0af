#include "common/grpc_token.h"

#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bearer_token.h"
#include "common/grpc_status.h"
#include "common/rpc_monitor.h"
#include "grpcpp/security/credentials.h"

namespace millrace {
namespace {

constexpr char kAuthorization[] = "authorization";

class TokenProcessor : public grpc::AuthMetadataProcessor {
 public:
  TokenProcessor(const std::string& path, std::shared_ptr<RpcMonitor> monitor)
      : check_(path), monitor_(std::move(monitor)) {}

  // To read a small file is quicker than to hand the call to another thread.
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* /*context*/, OutputMetadata* consumed,
                       OutputMetadata* /*response*/) override {
    const std::string_view method = Find(metadata, ":path");
    if (IsBuiltInMethod(method)) return grpc::Status::OK;
    const std::string_view authorization = Find(metadata, kAuthorization);
    grpc::Status status = ToGrpcStatus(check_.Check(authorization));
    if (!status.ok()) {
      monitor_->CallRefused(std::string(method), status.error_code());
    } else {
      consumed->emplace(kAuthorization, authorization);  // handlers need not see it
    }
    return status;
  }

 private:
  static std::string_view Find(const InputMetadata& metadata, const char* key) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) return {};
    return {found->second.data(), found->second.size()};
  }

  const TokenCheck check_;
  const std::shared_ptr<RpcMonitor> monitor_;
};

class TokenPlugin : public grpc::MetadataCredentialsPlugin {
 public:
  explicit TokenPlugin(std::string path) : path_(std::move(path)) {}

  bool IsBlocking() const override { return false; }

  grpc::Status GetMetadata(grpc::string_ref /*service_url*/, grpc::string_ref /*method*/,
                           const grpc::AuthContext& /*context*/,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    const absl::StatusOr<std::string> token = ReadToken(path_);
    if (!token.ok()) return ToGrpcStatus(token.status());
    metadata->emplace(kAuthorization, absl::StrCat("Bearer ", *token));
    return grpc::Status::OK;
  }

 private:
  const std::string path_;
};

}  // namespace

std::shared_ptr<grpc::AuthMetadataProcessor> AskForToken(const std::string& path, std::shared_ptr<RpcMonitor> monitor) {
  return std::make_shared<TokenProcessor>(path, std::move(monitor));
}

std::shared_ptr<grpc::ChannelCredentials> ShowToken(const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                                    const std::string& path) {
  return grpc::CompositeChannelCredentials(credentials,
                                           grpc::MetadataCredentialsFromPlugin(std::make_unique<TokenPlugin>(path)));
}

absl::Status CheckRunTokenFile(const std::string& path, bool encrypted) {
  if (!encrypted) {
    return absl::InvalidArgumentError(
        "--run-token-file: a token is not sent in plain text: give --tls-cert and --tls-key, or --tls-ca to a client");
  }
  const absl::Status read = ReadToken(path).status();
  return read.ok() ? read : absl::Status(read.code(), absl::StrCat("--run-token-file: ", read.message()));
}

}  // namespace millrace
