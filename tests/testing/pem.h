#pragma once

#include <openssl/bio.h>

#include <filesystem>
#include <functional>
#include <string>

namespace millrace {

// Writes what `write` puts into a BIO, replacing the file by renaming. Returns it. Throws if OpenSSL refuses.
std::string WritePem(const std::filesystem::path& path, const std::function<int(BIO*)>& write);

}  // namespace millrace
