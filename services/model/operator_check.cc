#include "services/model/operator_check.h"

namespace millrace {

absl::Status OperatorCheck::Check(std::string_view authorization) const {
  if (token_.has_value()) return token_->Check(authorization);
  if (open_) return absl::OkStatus();
  return absl::PermissionDeniedError("this service has no token for operators (--admin-token-file)");
}

absl::Status OperatorCheck::Check(const grpc::CallbackServerContext& context) const {
  const auto header = context.client_metadata().find("authorization");
  return Check(header == context.client_metadata().end()
                   ? std::string_view()
                   : std::string_view(header->second.data(), header->second.size()));
}

}  // namespace millrace
