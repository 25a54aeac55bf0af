#include "common/files.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/planted_bug.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

fs::path ParentOf(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// Creates or truncates `path`, writes and syncs it.
absl::Status WriteAndSync(const fs::path& path, std::string_view contents, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<FileSystem::Writer> file, files.Create(path));
  MILLRACE_RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(contents))));
  if (kPlantedBug != PlantedBug::kTornCommit) MILLRACE_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const fs::path& path, size_t bytes_max, FileSystem& files) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<FileSystem::Reader> file, files.Open(path));
  const auto too_large = [&] {
    return absl::OutOfRangeError(absl::StrCat(path.string(), " is over the limit of ", bytes_max, " bytes"));
  };
  if (file->size() > bytes_max) return too_large();

  // The size is a hint: a file in /proc says 0, and others may grow while they are read.
  std::string contents(static_cast<size_t>(file->size()) + 1, '\0');
  size_t filled = 0;
  while (true) {
    if (filled == contents.size()) contents.resize(filled * 2 + 4096);
    MILLRACE_ASSIGN_OR_RETURN(const size_t count,
                              file->Read(std::as_writable_bytes(std::span(contents)).subspan(filled)));
    if (count == 0) break;
    filled += count;
    if (filled > bytes_max) return too_large();
  }
  contents.resize(filled);
  return contents;
}

absl::Status WriteFileAtomically(const fs::path& path, std::string_view contents, FileSystem& files) {
  const fs::path temporary = path.string() + ".tmp";
  absl::Status status = WriteAndSync(temporary, contents, files);
  if (status.ok()) status = RenameDurably(temporary, path, files);
  if (!status.ok()) files.RemoveTree(temporary).IgnoreError();  // the first error is the one to report
  return status;
}

absl::Status SyncDirectory(const fs::path& path) { return RealFileSystem().SyncDirectory(path); }

absl::Status RenameDurably(const fs::path& from, const fs::path& to, FileSystem& files) {
  MILLRACE_RETURN_IF_ERROR(files.Rename(from, to));
  return files.SyncDirectory(ParentOf(to));
}

absl::Status MakeDirectories(const fs::path& path) { return RealFileSystem().MakeDirectories(path); }

absl::Status MakeDirectoriesDurably(const fs::path& path, FileSystem& files) {
  MILLRACE_RETURN_IF_ERROR(files.MakeDirectories(path));
  // Also those that were there already: a process may have died between making one and this. What may not be opened was
  // not made by us, and some file systems cannot sync a directory.
  for (fs::path made = fs::absolute(path).lexically_normal(); made.has_relative_path(); made = made.parent_path()) {
    const absl::Status synced = files.SyncDirectory(made.parent_path());
    if (!synced.ok() && !absl::IsPermissionDenied(synced) && !absl::IsInvalidArgument(synced)) return synced;
  }
  return absl::OkStatus();
}

std::vector<uint64_t> NumberedEntries(const fs::path& directory, FileSystem& files) {
  std::vector<uint64_t> numbers;
  for (const std::string& name : files.List(directory).value_or(std::vector<std::string>())) {
    uint64_t number;
    if (absl::SimpleAtoi(name, &number) && name == std::to_string(number)) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end(), std::greater<>());
  return numbers;
}

absl::Status RemoveTree(const fs::path& path) { return RealFileSystem().RemoveTree(path); }

}  // namespace millrace
