#include "services/parameter_server/checkpoint_store.h"

#include <algorithm>
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

absl::StatusOr<CheckpointStore> CheckpointStore::Open(const fs::path& output, FileSystem& files) {
  const fs::path root = output / "checkpoints";
  MILLRACE_RETURN_IF_ERROR(MakeDirectoriesDurably(root, files));
  absl::StatusOr<std::unique_ptr<FileSystem::Lock>> lock = files.LockFile(root / ".lock");
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(absl::StrCat("another parameter server is writing to ", output.string()));
  }
  MILLRACE_RETURN_IF_ERROR(lock.status());
  return CheckpointStore(output, &files, *std::move(lock));
}

CheckpointStore::CheckpointStore(const fs::path& output, FileSystem* files, std::unique_ptr<FileSystem::Lock> lock)
    : output_(output), root_(output_ / "checkpoints"), files_(files), lock_(std::move(lock)) {}

bool CheckpointStore::HoldsResults(const std::string& model_name) const {
  return !NumberedEntries(root_, *files_).empty() || !NumberedEntries(output_ / "models" / model_name, *files_).empty();
}

absl::Status CheckpointStore::Prepare(uint64_t version) {
  MILLRACE_RETURN_IF_ERROR(Discard(version));
  return files_->MakeDirectories(Directory(version));
}

absl::Status CheckpointStore::Commit(const CheckpointManifest& manifest) {
  const fs::path directory = Directory(manifest.version);
  MILLRACE_RETURN_IF_ERROR(files_->SyncDirectory(root_));  // the new directory's own name
  return WriteFileAtomically(directory / kCheckpointManifest, CheckpointManifestToJson(manifest), *files_);
}

absl::Status CheckpointStore::Discard(uint64_t version) {
  // The manifest first: a checkpoint that is half gone must not look committed.
  MILLRACE_RETURN_IF_ERROR(files_->RemoveTree(Directory(version) / kCheckpointManifest));
  return files_->RemoveTree(Directory(version));
}

absl::Status CheckpointStore::Prune(size_t keep, uint64_t spared) {
  const std::vector<uint64_t> committed = Committed();
  for (size_t i = keep; i < committed.size(); ++i) {
    if (committed[i] != spared) MILLRACE_RETURN_IF_ERROR(Discard(committed[i]));
  }
  return absl::OkStatus();
}

std::vector<uint64_t> CheckpointStore::Committed() const {
  std::vector<uint64_t> versions = NumberedEntries(root_, *files_);
  std::erase_if(versions, [this](uint64_t version) {
    return absl::IsNotFound(files_->FileSize(Directory(version) / kCheckpointManifest).status());
  });
  return versions;
}

absl::StatusOr<CheckpointManifest> CheckpointStore::Verify(uint64_t version) const {
  const fs::path directory = Directory(version);
  MILLRACE_ASSIGN_OR_RETURN(const std::string text,
                            ReadFile(directory / kCheckpointManifest, kManifestBytesMax, *files_));
  MILLRACE_ASSIGN_OR_RETURN(CheckpointManifest manifest, CheckpointManifestFromJson(text));
  if (manifest.version != version) {
    return absl::DataLossError(absl::StrCat("its manifest is of version ", manifest.version));
  }
  for (const CheckpointFile& file : manifest.files) {
    const absl::StatusOr<uint64_t> bytes = files_->FileSize(directory / file.name);
    if (!bytes.ok()) return absl::DataLossError(absl::StrCat(file.name, " is missing: ", bytes.status().message()));
    if (*bytes != file.bytes) {
      return absl::DataLossError(absl::StrCat(file.name, " has ", *bytes, " bytes, the manifest says ", file.bytes));
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string sha256, Sha256File(directory / file.name, *files_));
    if (sha256 != file.sha256) return absl::DataLossError(absl::StrCat(file.name, " has another SHA-256"));
  }
  return manifest;
}

absl::StatusOr<std::optional<CheckpointManifest>> CheckpointStore::FindNewest() const {
  // A directory that cannot be read is not an empty one: the job would start afresh over its own checkpoints.
  MILLRACE_RETURN_IF_ERROR(files_->List(root_).status());
  const std::vector<uint64_t> committed = Committed();
  for (const uint64_t version : committed) {
    absl::StatusOr<CheckpointManifest> manifest = Verify(version);
    if (manifest.ok()) {
      // Who wrote it may have died before its name was durable; from here on the job counts on it.
      MILLRACE_RETURN_IF_ERROR(files_->SyncDirectory(Directory(version)));
      return std::optional(*std::move(manifest));
    }
    LogWarning("checkpoint is not usable, trying the one before",
               {{"directory", Directory(version).string()}, {"reason", manifest.status()}});
  }
  if (committed.empty()) return std::optional<CheckpointManifest>();
  return absl::DataLossError(absl::StrCat("none of the ", committed.size(), " checkpoints in ", root_.string(),
                                          " is usable; the log says why"));
}

}  // namespace millrace
