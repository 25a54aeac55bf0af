#include "common/bearer_token.h"

#include <openssl/crypto.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kTokenFileBytesMax = 4096;
constexpr size_t kTokenCharactersMin = 16;
constexpr std::string_view kBearer = "Bearer ";

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadTokens(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kTokenFileBytesMax));
  std::vector<std::string> tokens;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (!token.empty()) tokens.emplace_back(token);
  }
  const auto bad = [](const std::string& token) {
    return token.size() < kTokenCharactersMin || std::ranges::any_of(token, absl::ascii_isspace);
  };
  if (tokens.empty() || std::ranges::any_of(tokens, bad)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " must hold one token a line, each of at least ", kTokenCharactersMin, " characters"));
  }
  return tokens;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(std::vector<std::string> tokens, ReadTokens(path));
  return std::move(tokens.front());
}

absl::Status TokenCheck::Check(std::string_view authorization) const {
  if (!authorization.starts_with(kBearer)) {
    return absl::UnauthenticatedError("this call needs the metadata \"authorization: Bearer TOKEN\"");
  }
  const absl::StatusOr<std::vector<std::string>> tokens = ReadTokens(path_);
  if (!tokens.ok()) {
    return absl::UnavailableError(absl::StrCat("the token cannot be read: ", tokens.status().message()));
  }
  // Digests are of one length, so that the comparison's time tells nothing about the token's.
  const std::string given = Sha256Hex(authorization.substr(kBearer.size()));
  for (const std::string& token : *tokens) {
    const std::string wanted = Sha256Hex(token);
    if (CRYPTO_memcmp(wanted.data(), given.data(), wanted.size()) == 0) return absl::OkStatus();
  }
  return absl::PermissionDeniedError("this is not the token of this service");
}

}  // namespace millrace
