#include "services/model/repository.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "common/model/manifest.h"
#include "common/model_name.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

absl::Status StatusOf(const std::error_code& error, const fs::path& path) {
  return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", path.string()));
}

std::optional<uint64_t> VersionNumber(std::string_view name) {
  uint64_t version = 0;
  if (name.empty() || name[0] == '0' || !std::all_of(name.begin(), name.end(), absl::ascii_isdigit))
    return std::nullopt;
  if (!absl::SimpleAtoi(ToAbsl(name), &version)) return std::nullopt;
  return version;
}

// Calls `visit` with each entry's path. Errors in the middle of a listing count: a listing that is cut short looks like
// one from which versions have vanished.
template <typename Visit>
absl::Status ForEachEntry(const fs::path& directory, Visit visit) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) visit(it->path());
  return error ? StatusOf(error, directory) : absl::OkStatus();
}

// Nothing if the version has no manifest (any more).
absl::StatusOr<std::optional<uint64_t>> Identity(const fs::path& version_directory) {
  std::vector<std::string> facts;
  bool has_manifest = false;
  int failed = 0;
  MILLRACE_RETURN_IF_ERROR(ForEachEntry(version_directory, [&](const fs::path& file) {
    struct stat facts_of;
    if (::stat(file.c_str(), &facts_of) != 0) {
      if (errno != ENOENT) failed = errno;
      return;
    }
    if (file.filename() == kManifestFile) has_manifest = S_ISREG(facts_of.st_mode);
    facts.push_back(absl::StrCat(file.filename().string(), "/", facts_of.st_ino, "/", facts_of.st_size, "/",
                                 facts_of.st_mtim.tv_sec, "/", facts_of.st_mtim.tv_nsec));
  }));
  if (failed != 0) return absl::ErrnoToStatus(failed, absl::StrCat("cannot read ", version_directory.string()));
  if (!has_manifest) return std::nullopt;
  std::sort(facts.begin(), facts.end());  // directory order is the file system's whim
  std::string all;
  for (const std::string& fact : facts) absl::StrAppend(&all, fact, "\n");
  return Checksum64(all);
}

absl::StatusOr<std::vector<AvailableVersion>> ListVersions(const fs::path& model_directory) {
  std::vector<uint64_t> numbers;
  MILLRACE_RETURN_IF_ERROR(ForEachEntry(model_directory, [&](const fs::path& entry) {
    if (std::optional<uint64_t> version = VersionNumber(entry.filename().string())) numbers.push_back(*version);
  }));
  std::sort(numbers.begin(), numbers.end());
  std::vector<AvailableVersion> versions;
  for (uint64_t version : numbers) {
    absl::StatusOr<std::optional<uint64_t>> identity = Identity(model_directory / absl::StrCat(version));
    if (absl::IsNotFound(identity.status())) continue;  // deleted since it was listed
    if (identity.status().code() == absl::ErrnoToStatusCode(ENOTDIR)) continue;
    if (!identity.ok()) return identity.status();
    if (identity->has_value()) versions.push_back({.version = version, .identity = **identity});
  }
  return versions;
}

}  // namespace

absl::StatusOr<RepositoryListing> ListRepository(const fs::path& root) {
  std::error_code error;
  const fs::file_status status = fs::status(root, error);
  if (status.type() == fs::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat("the repository ", root.string(), " does not exist yet"));
  }
  if (error) return StatusOf(error, root);
  if (!fs::is_directory(status)) {
    return absl::FailedPreconditionError(absl::StrCat("the repository ", root.string(), " is not a directory"));
  }
  std::vector<std::string> names;
  MILLRACE_RETURN_IF_ERROR(ForEachEntry(root, [&](const fs::path& entry) {
    std::error_code ignored;
    if (IsModelName(entry.filename().string()) && fs::is_directory(entry, ignored)) {
      names.push_back(entry.filename().string());
    }
  }));
  RepositoryListing listing;
  for (const std::string& name : names) {
    absl::StatusOr<std::vector<AvailableVersion>> versions = ListVersions(root / name);
    if (versions.ok()) {
      listing.models[name] = *std::move(versions);
    } else {
      listing.faults.push_back(versions.status());
    }
  }
  return listing;
}

fs::path VersionDirectory(const fs::path& root, const std::string& model, uint64_t version) {
  return root / model / absl::StrCat(version);
}

}  // namespace millrace
