// A shared secret in a file, for calls that not everybody may make.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// The token in the file, without white space around it. INVALID_ARGUMENT if it is shorter than 16 characters or holds
// white space; errors of the file system by code. The token itself is in no message.
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
