#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace millrace {

// The one seam between durable state and the disk: what must survive a crash is written and read through it, so that a
// simulation can put a disk there that fails, tears writes and forgets what was not synced. files.h has the operations
// that are made of these.
//
// What a real disk promises: the contents of a file are durable from Sync on, a name (of a file that was created,
// renamed or removed) from SyncDirectory of its directory on; before that a power failure may leave any part of them.
//
// Errors name the path; by code as in files.h. Safe from any thread; files that are open belong to one thread.
class FileSystem {
 public:
  // Closed when it is destroyed.
  class Writer {
   public:
    virtual ~Writer() = default;
    virtual absl::Status Append(std::span<const std::byte> data) = 0;
    virtual absl::Status Sync() = 0;
    // Some file systems tell of a full disk or quota only now.
    virtual absl::Status Close() = 0;
  };
  class Reader {
   public:
    virtual ~Reader() = default;
    // When it was opened; 0 for files in /proc, and for what is no regular file.
    virtual uint64_t size() const = 0;
    // The next bytes, at most as many as fit; 0 at the end.
    virtual absl::StatusOr<size_t> Read(std::span<std::byte> out) = 0;
  };
  // Given up when it is destroyed.
  class Lock {
   public:
    virtual ~Lock() = default;
  };

  virtual ~FileSystem() = default;

  // Creates or truncates.
  virtual absl::StatusOr<std::unique_ptr<Writer>> Create(const std::filesystem::path& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<Reader>> Open(const std::filesystem::path& path) = 0;
  // Creates `path` and its missing parents. OK if it is a directory already.
  virtual absl::Status MakeDirectories(const std::filesystem::path& path) = 0;
  // Replaces a file `to`, or an empty directory.
  virtual absl::Status Rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  virtual absl::Status SyncDirectory(const std::filesystem::path& path) = 0;
  // Removes `path` and, if it is a directory, everything in it. OK if there is nothing.
  virtual absl::Status RemoveTree(const std::filesystem::path& path) = 0;
  // Names in a directory, in any order.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::filesystem::path& directory) = 0;
  // NOT_FOUND if there is no such file.
  virtual absl::StatusOr<uint64_t> FileSize(const std::filesystem::path& path) = 0;
  // Among processes; made if it is not there. FAILED_PRECONDITION if another process holds it.
  virtual absl::StatusOr<std::unique_ptr<Lock>> LockFile(const std::filesystem::path& path) = 0;
};

// The operating system's. Lives as long as the process.
FileSystem& RealFileSystem();

}  // namespace millrace
