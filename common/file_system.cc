#include "common/file_system.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

absl::Status Error(int error, absl::string_view action, const fs::path& path) {
  // Abseil calls a read-only file system a failed precondition; to a person it is one more way of not being allowed.
  if (error == EROFS)
    return absl::PermissionDeniedError(absl::StrCat(action, path.string(), ": read-only file system"));
  const absl::Status status = absl::ErrnoToStatus(error, absl::StrCat(action, path.string()));
  switch (status.code()) {
    // What Abseil makes of EIO and its like. A connection that broke is called the same, and whoever waits for a peer
    // to come back would wait for ever for a disk.
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
      return absl::InternalError(status.message());
    default:
      return status;
  }
}

// A file descriptor and the name it was opened under.
class OpenFile {
 public:
  OpenFile(int fd, fs::path path) : fd_(fd), path_(std::move(path)) {}
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() {
    if (fd_ >= 0) close(fd_);
  }

 protected:
  int fd_;
  const fs::path path_;
};

class PosixWriter final : public FileSystem::Writer, OpenFile {
 public:
  using OpenFile::OpenFile;

  absl::Status Append(std::span<const std::byte> data) override {
    while (!data.empty()) {
      const ssize_t count = write(fd_, data.data(), data.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Error(errno, "cannot write ", path_);
      data = data.subspan(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override { return fsync(fd_) == 0 ? absl::OkStatus() : Error(errno, "cannot sync ", path_); }
  absl::Status Close() override {
    const int fd = std::exchange(fd_, -1);
    return close(fd) == 0 ? absl::OkStatus() : Error(errno, "cannot close ", path_);
  }
};

class PosixReader final : public FileSystem::Reader, OpenFile {
 public:
  using OpenFile::OpenFile;

  absl::Status Inspect() {
    struct stat info;
    if (fstat(fd_, &info) != 0) return Error(errno, "cannot inspect ", path_);
    if (S_ISREG(info.st_mode)) size_ = static_cast<uint64_t>(info.st_size);
    return absl::OkStatus();
  }
  uint64_t size() const override { return size_; }
  absl::StatusOr<size_t> Read(std::span<std::byte> out) override {
    ssize_t count;
    do {
      count = read(fd_, out.data(), out.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) return Error(errno, "cannot read ", path_);
    return static_cast<size_t>(count);
  }

 private:
  uint64_t size_ = 0;
};

class PosixLock final : public FileSystem::Lock, OpenFile {
 public:
  using OpenFile::OpenFile;
};

class PosixFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<Writer>> Create(const fs::path& path) override {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return Error(errno, "cannot create ", path);
    return std::make_unique<PosixWriter>(fd, path);
  }

  absl::StatusOr<std::unique_ptr<Reader>> Open(const fs::path& path) override {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Error(errno, "cannot open ", path);
    auto file = std::make_unique<PosixReader>(fd, path);
    MILLRACE_RETURN_IF_ERROR(file->Inspect());
    return file;
  }

  absl::Status MakeDirectories(const fs::path& path) override {
    std::error_code error;
    fs::create_directories(path, error);
    return error ? Error(error.value(), "cannot create directory ", path) : absl::OkStatus();
  }

  absl::Status Rename(const fs::path& from, const fs::path& to) override {
    if (rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    return Error(errno, absl::StrCat("cannot rename ", from.string(), " to "), to);
  }

  absl::Status SyncDirectory(const fs::path& path) override {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (fd < 0) return Error(errno, "cannot open ", path);
    const int result = fsync(fd);
    const int error = errno;
    close(fd);
    return result == 0 ? absl::OkStatus() : Error(error, "cannot sync ", path);
  }

  absl::Status RemoveTree(const fs::path& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    return error ? Error(error.value(), "cannot remove ", path) : absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const fs::path& directory) override {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error) return Error(error.value(), "cannot list ", directory);
    return names;
  }

  absl::StatusOr<uint64_t> FileSize(const fs::path& path) override {
    std::error_code error;
    const uint64_t bytes = fs::file_size(path, error);
    if (error) return Error(error.value(), "cannot inspect ", path);
    return bytes;
  }

  absl::StatusOr<std::unique_ptr<Lock>> LockFile(const fs::path& path) override {
    const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (fd < 0) return Error(errno, "cannot write to ", path);
    auto lock = std::make_unique<PosixLock>(fd, path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
    return absl::FailedPreconditionError(absl::StrCat(path.string(), " is locked by another process"));
  }
};

}  // namespace

FileSystem& RealFileSystem() {
  static FileSystem* const real = new PosixFileSystem;  // never destroyed: threads may outlive statics
  return *real;
}

}  // namespace millrace
