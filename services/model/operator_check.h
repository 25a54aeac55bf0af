// Who may change what a model service serves.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/bearer_token.h"
#include "grpcpp/server_context.h"

namespace millrace {

// Any thread.
class OperatorCheck {
 public:
  // `token_file`: of the bearer token; empty: none is asked for. `open`: whether then anybody may.
  OperatorCheck(const std::string& token_file, bool open)
      : token_(token_file.empty() ? std::nullopt : std::make_optional<TokenCheck>(token_file)), open_(open) {}

  // `authorization`: as it came, empty if none did. As TokenCheck::Check; PERMISSION_DENIED without a token for a
  // service that is not open.
  absl::Status Check(std::string_view authorization) const;
  // The call's metadata "authorization".
  absl::Status Check(const grpc::CallbackServerContext& context) const;

 private:
  const std::optional<TokenCheck> token_;
  const bool open_;
};

}  // namespace millrace
