#include "services/parameter_server/checkpoint_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kManifestBytesMax = 64 << 20;

}  // namespace

absl::StatusOr<CheckpointStore> CheckpointStore::Open(const fs::path& output) {
  const fs::path root = output / "checkpoints";
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(root));
  const fs::path path = root / ".lock";
  const int lock = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write to ", root.string()));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    close(lock);
    return absl::FailedPreconditionError(absl::StrCat("another parameter server is writing to ", output.string()));
  }
  return CheckpointStore(output, lock);
}

CheckpointStore::CheckpointStore(fs::path output, int lock)
    : output_(std::move(output)), root_(output_ / "checkpoints"), lock_(lock) {}

CheckpointStore::CheckpointStore(CheckpointStore&& other) noexcept
    : output_(std::move(other.output_)), root_(std::move(other.root_)), lock_(std::exchange(other.lock_, -1)) {}

CheckpointStore::~CheckpointStore() {
  if (lock_ >= 0) close(lock_);
}

bool CheckpointStore::HoldsResults(const std::string& model_name) const {
  return !NumberedEntries(root_).empty() || !NumberedEntries(output_ / "models" / model_name).empty();
}

absl::Status CheckpointStore::Prepare(uint64_t version) {
  MILLRACE_RETURN_IF_ERROR(Discard(version));
  return MakeDirectories(Directory(version));
}

absl::Status CheckpointStore::Commit(const CheckpointManifest& manifest) {
  const fs::path directory = Directory(manifest.version);
  MILLRACE_RETURN_IF_ERROR(SyncDirectory(root_));  // the new directory's own name
  return WriteFileAtomically(directory / kCheckpointManifest, CheckpointManifestToJson(manifest));
}

absl::Status CheckpointStore::Discard(uint64_t version) {
  // The manifest first: a checkpoint that is half gone must not look committed.
  MILLRACE_RETURN_IF_ERROR(RemoveTree(Directory(version) / kCheckpointManifest));
  return RemoveTree(Directory(version));
}

absl::Status CheckpointStore::Prune(size_t keep, uint64_t spared) {
  const std::vector<uint64_t> committed = Committed();
  for (size_t i = keep; i < committed.size(); ++i) {
    if (committed[i] != spared) MILLRACE_RETURN_IF_ERROR(Discard(committed[i]));
  }
  return absl::OkStatus();
}

std::vector<uint64_t> CheckpointStore::Committed() const {
  std::vector<uint64_t> versions = NumberedEntries(root_);
  std::erase_if(versions, [this](uint64_t version) {
    std::error_code error;
    return !fs::exists(Directory(version) / kCheckpointManifest, error);
  });
  return versions;
}

absl::StatusOr<CheckpointManifest> CheckpointStore::Verify(uint64_t version) const {
  const fs::path directory = Directory(version);
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(directory / kCheckpointManifest, kManifestBytesMax));
  MILLRACE_ASSIGN_OR_RETURN(CheckpointManifest manifest, CheckpointManifestFromJson(text));
  if (manifest.version != version) {
    return absl::DataLossError(absl::StrCat("its manifest is of version ", manifest.version));
  }
  for (const CheckpointFile& file : manifest.files) {
    std::error_code error;
    const uint64_t bytes = fs::file_size(directory / file.name, error);
    if (error) return absl::DataLossError(absl::StrCat(file.name, " is missing: ", error.message()));
    if (bytes != file.bytes) {
      return absl::DataLossError(absl::StrCat(file.name, " has ", bytes, " bytes, the manifest says ", file.bytes));
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string sha256, Sha256File(directory / file.name));
    if (sha256 != file.sha256) return absl::DataLossError(absl::StrCat(file.name, " has another SHA-256"));
  }
  return manifest;
}

absl::StatusOr<std::optional<CheckpointManifest>> CheckpointStore::FindNewest() const {
  const std::vector<uint64_t> committed = Committed();
  for (const uint64_t version : committed) {
    absl::StatusOr<CheckpointManifest> manifest = Verify(version);
    if (manifest.ok()) return std::optional(*std::move(manifest));
    LogWarning("checkpoint is not usable, trying the one before",
               {{"directory", Directory(version).string()}, {"reason", manifest.status()}});
  }
  if (committed.empty()) return std::optional<CheckpointManifest>();
  return absl::DataLossError(absl::StrCat("none of the ", committed.size(), " checkpoints in ", root_.string(),
                                          " is usable; the log says why"));
}

}  // namespace millrace
