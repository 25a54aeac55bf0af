#include "common/bearer_token.h"

#include <openssl/crypto.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kTokenFileBytesMax = 4096;
constexpr size_t kTokenCharactersMin = 16;
constexpr std::string_view kBearer = "Bearer ";

}  // namespace

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::string token, ReadFile(path, kTokenFileBytesMax));
  absl::StripAsciiWhitespace(&token);
  if (token.size() < kTokenCharactersMin || std::ranges::any_of(token, absl::ascii_isspace)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " must hold one token of at least ", kTokenCharactersMin, " characters"));
  }
  return token;
}

absl::Status TokenCheck::Check(std::string_view authorization) const {
  if (!authorization.starts_with(kBearer)) {
    return absl::UnauthenticatedError("this call needs the metadata \"authorization: Bearer TOKEN\"");
  }
  const absl::StatusOr<std::string> token = ReadToken(path_);
  if (!token.ok()) return absl::UnavailableError(absl::StrCat("the token cannot be read: ", token.status().message()));
  // Digests are of one length, so that the comparison's time tells nothing about the token's.
  const std::string wanted = Sha256Hex(*token);
  const std::string given = Sha256Hex(authorization.substr(kBearer.size()));
  if (CRYPTO_memcmp(wanted.data(), given.data(), wanted.size()) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError("this is not the token of this service");
}

}  // namespace millrace
