#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/file_system.h"

// Opaque states of OpenSSL and xxHash, so that their headers stay out of ours.
struct evp_md_ctx_st;
struct XXH3_state_s;

namespace millrace {

// --- SHA-256 (FIPS 180-4): names contents. What is stored and compared across machines and years uses this. ---

// 64 lower-case hexadecimal digits.
std::string Sha256Hex(std::span<const std::byte> data);
std::string Sha256Hex(std::string_view data);

// Reads the file in pieces; constant memory. NOT_FOUND, PERMISSION_DENIED and other errors of the file system by code.
absl::StatusOr<std::string> Sha256File(const std::filesystem::path& path, FileSystem& files = RealFileSystem());

// The digest of data that comes in pieces. Not thread-safe. After FinishHex() the object is spent.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::span<const std::byte> data);
  void Update(std::string_view data);
  std::string FinishHex();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

// --- XXH3-64, seed 0: detects accidents on the wire and in memory, at memory speed. No protection from malice. ---

uint64_t Checksum64(std::span<const std::byte> data);
uint64_t Checksum64(std::string_view data);

// The checksum of data that comes in pieces: equal to Checksum64 of the whole, however it was cut. Not thread-safe.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;

  void Update(std::span<const std::byte> data);
  void Update(std::string_view data);
  // Of everything so far; more may follow.
  uint64_t Value() const;
  // Begins anew.
  void Reset();

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace millrace
