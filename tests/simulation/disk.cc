#include "tests/simulation/disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace::simulation {
namespace fs = std::filesystem;

Disk::NodePtr Disk::Find(const fs::path& path) const {
  NodePtr node = root_;
  for (const fs::path& name : path.relative_path()) {
    if (!node->directory) return nullptr;
    const auto found = node->entries.find(name.string());
    if (found == node->entries.end()) return nullptr;
    node = found->second;
  }
  return node;
}

absl::StatusOr<Disk::NodePtr> Disk::FindDirectory(const fs::path& path) const {
  NodePtr node = Find(path);
  if (node == nullptr || !node->directory) return absl::NotFoundError(absl::StrCat("no directory ", path.string()));
  return node;
}

void Disk::Apply(Node& directory, Change change) {
  for (const auto& [name, node] : change) {
    if (node != nullptr) {
      directory.entries[name] = node;
    } else {
      directory.entries.erase(name);
    }
  }
  directory.unsynced.push_back(std::move(change));
}

void Disk::PowerFailure() { Forget(*root_); }

void Disk::Forget(Node& node) {
  node.locked_by.reset();
  if (!node.directory) {
    if (node.synced) return;
    // What was there before, or some beginning of what was written over it.
    node.data = world_.Chance(0.3) ? node.synced_data
                                   : node.data.substr(0, world_.Random(static_cast<uint32_t>(node.data.size()) + 1));
    node.synced_data = node.data;
    node.synced = true;
    return;
  }
  const size_t kept = world_.Random(static_cast<uint32_t>(node.unsynced.size()) + 1);
  for (size_t i = 0; i < kept; ++i) {
    for (const auto& [name, target] : node.unsynced[i]) {
      if (target != nullptr) {
        node.synced_entries[name] = target;
      } else {
        node.synced_entries.erase(name);
      }
    }
  }
  node.unsynced.clear();
  node.entries = node.synced_entries;
  for (const auto& [name, entry] : node.entries) Forget(*entry);
}

class MountedDisk final : public FileSystem {
 public:
  MountedDisk(Disk* disk, std::shared_ptr<Process> process) : disk_(*disk), process_(std::move(process)) {}

  absl::StatusOr<std::unique_ptr<Writer>> Create(const fs::path& path) override;
  absl::StatusOr<std::unique_ptr<Reader>> Open(const fs::path& path) override;

  absl::Status MakeDirectories(const fs::path& path) override {
    fs::path made = "/";
    for (const fs::path& name : path.relative_path()) {
      MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr parent, disk_.FindDirectory(made));
      made /= name;
      if (parent->entries.contains(name.string())) continue;
      MILLRACE_RETURN_IF_ERROR(Change("make directory", made));
      Disk::Apply(*parent, {{name.string(), std::make_shared<Disk::Node>(/*directory=*/true)}});
    }
    return disk_.FindDirectory(path).status();
  }

  absl::Status Rename(const fs::path& from, const fs::path& to) override {
    MILLRACE_RETURN_IF_ERROR(Change("rename", from));
    const Disk::NodePtr node = disk_.Find(from);
    if (node == nullptr || from.parent_path() != to.parent_path()) return absl::NotFoundError(from.string());
    MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr parent, disk_.FindDirectory(to.parent_path()));
    Disk::Apply(*parent, {{to.filename().string(), node}, {from.filename().string(), nullptr}});
    return absl::OkStatus();
  }

  absl::Status SyncDirectory(const fs::path& path) override {
    MILLRACE_RETURN_IF_ERROR(Change("sync directory", path));
    MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr node, disk_.FindDirectory(path));
    node->synced_entries = node->entries;
    node->unsynced.clear();
    return absl::OkStatus();
  }

  absl::Status RemoveTree(const fs::path& path) override {
    const Disk::NodePtr node = disk_.Find(path);
    if (node == nullptr) return absl::OkStatus();
    while (node->directory && !node->entries.empty()) {
      MILLRACE_RETURN_IF_ERROR(RemoveTree(path / node->entries.begin()->first));
    }
    MILLRACE_RETURN_IF_ERROR(Change("remove", path));
    MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr parent, disk_.FindDirectory(path.parent_path()));
    Disk::Apply(*parent, {{path.filename().string(), nullptr}});
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const fs::path& directory) override {
    if (!process_->alive()) return Killed();
    MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr node, disk_.FindDirectory(directory));
    std::vector<std::string> names;
    for (const auto& [name, entry] : node->entries) names.push_back(name);
    return names;
  }

  absl::StatusOr<uint64_t> FileSize(const fs::path& path) override {
    if (!process_->alive()) return Killed();
    const Disk::NodePtr node = disk_.Find(path);
    if (node == nullptr || node->directory) return absl::NotFoundError(path.string());
    return node->data.size();
  }

  absl::StatusOr<std::unique_ptr<Lock>> LockFile(const fs::path& path) override {
    if (disk_.Find(path) == nullptr) MILLRACE_RETURN_IF_ERROR(Create(path).status());
    const Disk::NodePtr node = disk_.Find(path);
    const std::shared_ptr<Process> holder = node->locked_by.lock();
    if (holder != nullptr && holder->alive()) return absl::FailedPreconditionError("locked");
    node->locked_by = process_;
    return std::make_unique<HeldLock>(node);
  }

 private:
  friend class MountedWriter;

  class HeldLock final : public Lock {
   public:
    explicit HeldLock(Disk::NodePtr node) : node_(std::move(node)) {}
    ~HeldLock() override { node_->locked_by.reset(); }

   private:
    const Disk::NodePtr node_;
  };

  static absl::Status Killed() { return absl::CancelledError("the process was killed"); }

  // Before every change: it takes its time, and may fail.
  absl::Status Change(const char* what, const fs::path& path) {
    if (!process_->alive()) return Killed();
    World& world = process_->world();
    const uint64_t call = ++disk_.calls_;
    world.Trace([&] { return absl::StrCat(process_->name(), ": ", what, " ", path.string(), " (call ", call, ")"); });
    if (call == disk_.kill_at_) {
      world.Post(absl::ZeroDuration(), [process = process_] { process->Kill(); });
      process_->Sleep(absl::Seconds(1));
    } else if (world.Chance(0.5)) {
      process_->Sleep(world.Between(absl::ZeroDuration(), absl::Milliseconds(5)));
    }
    if (!process_->alive()) return Killed();
    if (disk_.failures_ > 0 && world.Chance(disk_.failures_)) {
      ++disk_.failed_;
      return absl::UnknownError(absl::StrCat("cannot ", what, " ", path.string(), ": I/O error"));
    }
    return absl::OkStatus();
  }

  absl::Status NeedSpace(const fs::path& path) {
    if (!disk_.full_) return absl::OkStatus();
    ++disk_.failed_;
    return absl::ResourceExhaustedError(absl::StrCat("cannot write ", path.string(), ": no space left on device"));
  }

  Disk& disk_;
  const std::shared_ptr<Process> process_;
};

class MountedWriter final : public FileSystem::Writer {
 public:
  MountedWriter(MountedDisk* disk, fs::path path, Disk::NodePtr node)
      : disk_(*disk), path_(std::move(path)), node_(std::move(node)) {}

  absl::Status Append(std::span<const std::byte> data) override {
    absl::Status status = disk_.Change("write", path_);
    if (status.ok()) status = disk_.NeedSpace(path_);
    // A write that failed, or whose process was killed, may have written a part.
    const size_t written =
        status.ok() ? data.size() : disk_.process_->world().Random(static_cast<uint32_t>(data.size()) + 1);
    node_->data.append(reinterpret_cast<const char*>(data.data()), written);
    node_->synced = false;
    return status;
  }
  absl::Status Sync() override {
    MILLRACE_RETURN_IF_ERROR(disk_.Change("sync", path_));
    MILLRACE_RETURN_IF_ERROR(disk_.NeedSpace(path_));
    node_->synced_data = node_->data;
    node_->synced = true;
    return absl::OkStatus();
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  MountedDisk& disk_;
  const fs::path path_;
  const Disk::NodePtr node_;
};

class MountedReader final : public FileSystem::Reader {
 public:
  explicit MountedReader(Disk::NodePtr node) : node_(std::move(node)) {}

  uint64_t size() const override { return node_->directory ? 0 : node_->data.size(); }
  absl::StatusOr<size_t> Read(std::span<std::byte> out) override {
    const size_t count = std::min(out.size(), node_->data.size() - std::min(offset_, node_->data.size()));
    std::memcpy(out.data(), node_->data.data() + offset_, count);
    offset_ += count;
    return count;
  }

 private:
  const Disk::NodePtr node_;
  size_t offset_ = 0;
};

absl::StatusOr<std::unique_ptr<FileSystem::Writer>> MountedDisk::Create(const fs::path& path) {
  MILLRACE_RETURN_IF_ERROR(Change("create", path));
  MILLRACE_RETURN_IF_ERROR(NeedSpace(path));
  MILLRACE_ASSIGN_OR_RETURN(const Disk::NodePtr parent, disk_.FindDirectory(path.parent_path()));
  Disk::NodePtr node = disk_.Find(path);
  if (node == nullptr) {
    node = std::make_shared<Disk::Node>(/*directory=*/false);
    Disk::Apply(*parent, {{path.filename().string(), node}});
  } else if (node->directory) {
    return absl::FailedPreconditionError(absl::StrCat(path.string(), " is a directory"));
  }
  node->data.clear();
  node->synced = node->synced_data.empty();
  return std::make_unique<MountedWriter>(this, path, std::move(node));
}

absl::StatusOr<std::unique_ptr<FileSystem::Reader>> MountedDisk::Open(const fs::path& path) {
  if (!process_->alive()) return Killed();
  Disk::NodePtr node = disk_.Find(path);
  if (node == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", path.string(), ": no such file"));
  return std::make_unique<MountedReader>(std::move(node));
}

std::unique_ptr<FileSystem> Disk::Mount(std::shared_ptr<Process> process) {
  return std::make_unique<MountedDisk>(this, std::move(process));
}

}  // namespace millrace::simulation
