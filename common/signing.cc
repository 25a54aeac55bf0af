#include "common/signing.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr size_t kPemBytesMax = 1 << 20;
constexpr size_t kSignatureBytes = 64;

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;
using Context = std::unique_ptr<EVP_MD_CTX, FreeContext>;
using Key = std::unique_ptr<EVP_PKEY, FreeKey>;

Bio Open(const std::string& text) {
  Bio bio(BIO_new(BIO_s_mem()));
  BIO_write(bio.get(), text.data(), static_cast<int>(text.size()));
  return bio;
}

size_t Count(std::string_view text, std::string_view what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + what.size())) ++count;
  return count;
}

// A password would be asked for at the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

bool IsEd25519(const Key& key) { return key != nullptr && EVP_PKEY_id(key.get()) == EVP_PKEY_ED25519; }

const uint8_t* BytesOf(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

}  // namespace

void FreeKey::operator()(evp_pkey_st* key) const { EVP_PKEY_free(key); }

absl::StatusOr<SigningKey> SigningKey::Read(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kPemBytesMax));
  const Bio bio = Open(text);
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (!IsEd25519(key)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no Ed25519 private key without a password, in PEM"));
  }
  return SigningKey(std::move(key));
}

absl::StatusOr<std::string> SigningKey::Sign(std::string_view message) const {
  const Context context(EVP_MD_CTX_new());
  std::string signature(kSignatureBytes, '\0');
  size_t size = signature.size();
  const bool made = EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1 &&
                    EVP_DigestSign(context.get(), reinterpret_cast<uint8_t*>(signature.data()), &size, BytesOf(message),
                                   message.size()) == 1 &&
                    size == kSignatureBytes;
  ERR_clear_error();
  if (!made) return absl::InternalError("OpenSSL does not sign");
  return absl::Base64Escape(signature);
}

absl::StatusOr<TrustedKeys> TrustedKeys::Read(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kPemBytesMax));
  const Bio bio = Open(text);
  TrustedKeys trusted;
  while (Key key{PEM_read_bio_PUBKEY(bio.get(), nullptr, NoPassword, nullptr)}) {
    if (!IsEd25519(key)) return absl::InvalidArgumentError(absl::StrCat(path, " holds a key that is not Ed25519"));
    trusted.keys_.push_back(std::move(key));
  }
  ERR_clear_error();
  if (trusted.keys_.empty() || trusted.keys_.size() != Count(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrCat(path, " must hold public keys in PEM, and nothing else"));
  }
  return trusted;
}

bool TrustedKeys::Signed(std::string_view message, std::string_view signature) const {
  std::string bytes;
  if (!absl::Base64Unescape(absl::StripAsciiWhitespace(ToAbsl(signature)), &bytes)) return false;
  for (const Key& key : keys_) {
    const Context context(EVP_MD_CTX_new());
    const bool valid =
        EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
        EVP_DigestVerify(context.get(), BytesOf(bytes), bytes.size(), BytesOf(message), message.size()) == 1;
    ERR_clear_error();
    if (valid) return true;
  }
  return false;
}

}  // namespace millrace
