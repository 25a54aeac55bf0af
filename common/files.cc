#include "common/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <string>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

absl::Status Error(int error, absl::string_view action, const fs::path& path) {
  // Abseil calls a read-only file system a failed precondition; to a person it is one more way of not being allowed.
  if (error == EROFS)
    return absl::PermissionDeniedError(absl::StrCat(action, path.string(), ": read-only file system"));
  return absl::ErrnoToStatus(error, absl::StrCat(action, path.string()));
}

absl::Status WriteAll(int fd, std::string_view contents, const fs::path& path) {
  while (!contents.empty()) {
    const ssize_t count = write(fd, contents.data(), contents.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error(errno, "cannot write ", path);
    contents.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

fs::path ParentOf(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// Creates or truncates `path`, writes and syncs it.
absl::Status WriteAndSync(const fs::path& path, std::string_view contents) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return Error(errno, "cannot create ", path);
  absl::Status status = WriteAll(fd, contents, path);
  if (status.ok() && fsync(fd) != 0) status = Error(errno, "cannot sync ", path);
  // Some file systems tell of a full disk or quota only now.
  if (close(fd) != 0 && status.ok()) status = Error(errno, "cannot close ", path);
  return status;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const fs::path& path, size_t bytes_max) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Error(errno, "cannot open ", path);
  absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) return Error(errno, "cannot inspect ", path);
  const auto too_large = [&] {
    return absl::OutOfRangeError(absl::StrCat(path.string(), " is over the limit of ", bytes_max, " bytes"));
  };
  if (info.st_size > 0 && static_cast<uint64_t>(info.st_size) > bytes_max) return too_large();

  // The size is a hint: a file in /proc says 0, and others may grow while they are read.
  std::string contents(static_cast<size_t>(info.st_size) + 1, '\0');
  size_t filled = 0;
  while (true) {
    if (filled == contents.size()) contents.resize(filled * 2 + 4096);
    const ssize_t count = read(fd, contents.data() + filled, contents.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error(errno, "cannot read ", path);
    if (count == 0) break;
    filled += static_cast<size_t>(count);
    if (filled > bytes_max) return too_large();
  }
  contents.resize(filled);
  return contents;
}

absl::Status WriteFileAtomically(const fs::path& path, std::string_view contents) {
  const fs::path temporary = path.string() + ".tmp";
  absl::Status status = WriteAndSync(temporary, contents);
  if (status.ok()) status = RenameDurably(temporary, path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::Status SyncDirectory(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (fd < 0) return Error(errno, "cannot open ", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? absl::OkStatus() : Error(error, "cannot sync ", path);
}

absl::Status RenameDurably(const fs::path& from, const fs::path& to) {
  if (rename(from.c_str(), to.c_str()) != 0) {
    return Error(errno, absl::StrCat("cannot rename ", from.string(), " to "), to);
  }
  return SyncDirectory(ParentOf(to));
}

absl::Status MakeDirectories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return Error(error.value(), "cannot create directory ", path);
  return absl::OkStatus();
}

std::vector<uint64_t> NumberedEntries(const fs::path& directory) {
  std::vector<uint64_t> numbers;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    uint64_t number;
    if (absl::SimpleAtoi(name, &number) && name == std::to_string(number)) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end(), std::greater<>());
  return numbers;
}

absl::Status RemoveTree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return Error(error.value(), "cannot remove ", path);
  return absl::OkStatus();
}

}  // namespace millrace
