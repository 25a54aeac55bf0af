// Ed25519 signatures (RFC 8032) of files: who made a model version. Keys are PEM files as OpenSSL writes them:
//   openssl genpkey -algorithm ed25519 -out key.pem
//   openssl pkey -in key.pem -pubout -out trusted.pem
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

struct evp_pkey_st;

namespace millrace {

inline constexpr size_t kSignatureBytesMax = 1024;  // of a file with a signature

struct FreeKey {
  void operator()(evp_pkey_st* key) const;
};

// Any thread.
class SigningKey {
 public:
  // INVALID_ARGUMENT if the file holds no Ed25519 private key without a password; errors of the file system by code.
  static absl::StatusOr<SigningKey> Read(const std::string& path);

  // In base64. INTERNAL if OpenSSL refuses.
  absl::StatusOr<std::string> Sign(std::string_view message) const;

 private:
  explicit SigningKey(std::unique_ptr<evp_pkey_st, FreeKey> key) : key_(std::move(key)) {}

  std::unique_ptr<evp_pkey_st, FreeKey> key_;
};

// Any thread.
class TrustedKeys {
 public:
  // One or more public keys, one after the other. INVALID_ARGUMENT if the file holds anything else; errors of the file
  // system by code.
  static absl::StatusOr<TrustedKeys> Read(const std::string& path);

  // Whether one of the keys made this signature, in base64, of exactly this message.
  bool Signed(std::string_view message, std::string_view signature) const;

 private:
  std::vector<std::unique_ptr<evp_pkey_st, FreeKey>> keys_;
};

}  // namespace millrace
