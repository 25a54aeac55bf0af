// A shared secret in a file, for calls that not everybody may make.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// The tokens in the file, one a line, without white space around them: the first is the one to show, each is believed.
// So a token is changed with no call refused: add the new one below the old one for all who check, let it be the first
// for all who show it, remove the old one. INVALID_ARGUMENT if there is none, or one is shorter than 16 characters or
// holds white space; errors of the file system by code. No token is in a message.
absl::StatusOr<std::vector<std::string>> ReadTokens(const std::string& path);

// The first.
absl::StatusOr<std::string> ReadToken(const std::string& path);

// Any thread. The file is read at every check: a new token needs no restart.
class TokenCheck {
 public:
  explicit TokenCheck(std::string path) : path_(std::move(path)) {}

  // `authorization`: as it came, "Bearer TOKEN"; empty if none came. UNAUTHENTICATED if it is none of that form,
  // PERMISSION_DENIED for another token, in a time that says nothing about the right one. UNAVAILABLE if the file
  // cannot be read.
  absl::Status Check(std::string_view authorization) const;

 private:
  const std::string path_;
};

}  // namespace millrace
