// The training checkpoints of one output directory:
//   <output>/checkpoints/<version>/shard-IIIII-of-NNNNN.safetensors   one per shard
//   <output>/checkpoints/<version>/slot-checksums.txt                of the steps before it (common/slot_checksums.h)
//   <output>/checkpoints/<version>/manifest.json                     written last: the commit
//
// Threads: one at a time. Errors: those of the file system by code, with the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "services/parameter_server/checkpoint_manifest.h"

namespace millrace {

class CheckpointStore {
 public:
  // Makes the directory, and holds a lock on it as long as the store lives. FAILED_PRECONDITION if another process
  // holds it; PERMISSION_DENIED etc. if the directory cannot be written to.
  static absl::StatusOr<CheckpointStore> Open(const std::filesystem::path& output,
                                              FileSystem& files = RealFileSystem());

  FileSystem& files() const { return *files_; }
  std::filesystem::path Directory(uint64_t version) const { return CheckpointDirectory(output_, version); }

  // True if there are checkpoints, or served versions of `model_name`.
  bool HoldsResults(const std::string& model_name) const;

  // An empty directory for a checkpoint of this version; what an attempt that was never committed left is removed.
  absl::Status Prepare(uint64_t version);
  // Makes the checkpoint exist. Its files must be on disk.
  absl::Status Commit(const CheckpointManifest& manifest);
  // Removes whatever there is of this version.
  absl::Status Discard(uint64_t version);
  // Discards all but the newest `keep` committed checkpoints and that of version `spared`, if there is one.
  absl::Status Prune(size_t keep, uint64_t spared = 0);

  // The newest committed checkpoint whose manifest and files are what they were when it was written; logs why it passes
  // over newer ones. nullopt if nothing was ever committed; DATA_LOSS if none is usable.
  absl::StatusOr<std::optional<CheckpointManifest>> FindNewest() const;

 private:
  CheckpointStore(const std::filesystem::path& output, FileSystem* files, std::unique_ptr<FileSystem::Lock> lock);

  std::vector<uint64_t> Committed() const;  // newest first
  absl::StatusOr<CheckpointManifest> Verify(uint64_t version) const;

  std::filesystem::path output_;
  std::filesystem::path root_;
  FileSystem* files_;
  std::unique_ptr<FileSystem::Lock> lock_;
};

}  // namespace millrace
