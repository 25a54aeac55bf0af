#include "common/hashing.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <new>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const { EVP_MD_CTX_free(context); }

// SHA-256 over memory cannot fail; OpenSSL fails here only without memory.
Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  if (context_ == nullptr || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) throw std::bad_alloc();
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::span<const std::byte> data) { EVP_DigestUpdate(context_.get(), data.data(), data.size()); }
void Sha256::Update(std::string_view data) { Update(Bytes(data)); }

std::string Sha256::FinishHex() {
  std::array<unsigned char, 32> digest;
  EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

std::string Sha256Hex(std::span<const std::byte> data) {
  Sha256 hash;
  hash.Update(data);
  return hash.FinishHex();
}
std::string Sha256Hex(std::string_view data) { return Sha256Hex(Bytes(data)); }

absl::StatusOr<std::string> Sha256File(const std::filesystem::path& path, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<FileSystem::Reader> file, files.Open(path));
  Sha256 hash;
  std::vector<std::byte> buffer(std::clamp<uint64_t>(file->size(), 1, 256 << 10));
  while (true) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t count, file->Read(buffer));
    if (count == 0) return hash.FinishHex();
    hash.Update(std::span(buffer.data(), count));
  }
}

uint64_t Checksum64(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }
uint64_t Checksum64(std::string_view data) { return Checksum64(Bytes(data)); }

void Checksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Checksum::Checksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  Reset();
}
Checksum::~Checksum() = default;
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum& Checksum::operator=(Checksum&&) noexcept = default;

void Checksum::Update(std::span<const std::byte> data) { XXH3_64bits_update(state_.get(), data.data(), data.size()); }
void Checksum::Update(std::string_view data) { Update(Bytes(data)); }
uint64_t Checksum::Value() const { return XXH3_64bits_digest(state_.get()); }
void Checksum::Reset() { XXH3_64bits_reset(state_.get()); }

}  // namespace millrace
