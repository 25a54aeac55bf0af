#include "tests/testing/pem.h"

#include <fstream>
#include <stdexcept>

namespace millrace {

std::string WritePem(const std::filesystem::path& path, const std::function<int(BIO*)>& write) {
  BIO* const bio = BIO_new(BIO_s_mem());
  const bool written = write(bio) == 1;
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  const std::string pem(text, static_cast<size_t>(size));
  BIO_free(bio);
  if (!written) throw std::runtime_error("OpenSSL writes no PEM to " + path.string());
  const std::filesystem::path temporary = path.string() + ".new";
  std::ofstream(temporary, std::ios::binary) << pem;
  std::filesystem::rename(temporary, path);
  return pem;
}

}  // namespace millrace
