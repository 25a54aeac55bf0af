#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace millrace {

// Files that survive a crash. Every error names path and reason; by code: NOT_FOUND (no such file), PERMISSION_DENIED
// (also a read-only file system), RESOURCE_EXHAUSTED (disk or quota full), ALREADY_EXISTS, INTERNAL (EIO; never a code
// that a lost peer has), else absl::ErrnoToStatusCode's. Any thread; two writers of one path need an agreement.

// The whole file. A file of more than `bytes_max` bytes is OUT_OF_RANGE, before anything of that size is allocated.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, size_t bytes_max,
                                     FileSystem& files = RealFileSystem());

// After OK `path` holds `contents`, also after a power failure; after an error or a crash it holds what it held before
// (a crash may leave `path`.tmp behind, which the next write replaces).
absl::Status WriteFileAtomically(const std::filesystem::path& path, std::string_view contents,
                                 FileSystem& files = RealFileSystem());

// fsync of a directory's entries.
absl::Status SyncDirectory(const std::filesystem::path& path);

// Gives `from`, a file or a directory, its final name `to`, and makes the new name durable. Replaces a file `to`, or an
// empty directory. What `from` contains must have been synced by whoever wrote it. Both names must be on one file
// system.
absl::Status RenameDurably(const std::filesystem::path& from, const std::filesystem::path& to,
                           FileSystem& files = RealFileSystem());

// Creates `path` and its missing parents. OK if it is a directory already.
absl::Status MakeDirectories(const std::filesystem::path& path);

// The same, and durable: every directory that was made is there after a power failure.
absl::Status MakeDirectoriesDurably(const std::filesystem::path& path, FileSystem& files = RealFileSystem());

// The entries of `directory` that are named by a number, as versions are, largest first; none if it cannot be read.
std::vector<uint64_t> NumberedEntries(const std::filesystem::path& directory, FileSystem& files = RealFileSystem());

// Removes `path` and, if it is a directory, everything in it. OK if there is nothing.
absl::Status RemoveTree(const std::filesystem::path& path);

}  // namespace millrace
