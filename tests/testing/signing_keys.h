#pragma once

#include <filesystem>
#include <string>

namespace millrace {

struct SigningKeyFiles {
  std::string private_key, public_key;  // paths of PEM files
  std::string public_pem;
};

// A new Ed25519 key pair, <prefix>.key and <prefix>.pub. Throws if OpenSSL or the disk refuses.
SigningKeyFiles WriteSigningKey(const std::filesystem::path& prefix);

}  // namespace millrace
