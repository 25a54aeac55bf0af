#include "tests/testing/signing_keys.h"

#include <openssl/evp.h>
#include <openssl/pem.h>

#include <memory>
#include <stdexcept>

#include "tests/testing/pem.h"

namespace millrace {

SigningKeyFiles WriteSigningKey(const std::filesystem::path& prefix) {
  const std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)> key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"),
                                                           EVP_PKEY_free);
  if (key == nullptr) throw std::runtime_error("OpenSSL makes no Ed25519 key");
  SigningKeyFiles files{
      .private_key = prefix.string() + ".key", .public_key = prefix.string() + ".pub", .public_pem = ""};
  WritePem(files.private_key,
           [&](BIO* bio) { return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
  files.public_pem = WritePem(files.public_key, [&](BIO* bio) { return PEM_write_bio_PUBKEY(bio, key.get()); });
  return files;
}

}  // namespace millrace
