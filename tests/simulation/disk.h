// A disk that behaves as badly as a real one may: it is full or fails now and then, writes are torn when their process
// is killed, and a power failure forgets what was not synced: of each file's contents since its last sync any beginning
// stays, of each directory's changes since its last sync any number of the first ones.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/file_system.h"
#include "tests/simulation/world.h"

namespace millrace::simulation {

class Disk {
 public:
  struct Node;  // a file or a directory
  using NodePtr = std::shared_ptr<Node>;
  using Change = std::vector<std::pair<std::string, NodePtr>>;  // names and what they stand for from now on, or null
  struct Node {
    explicit Node(bool directory) : directory(directory) {}
    const bool directory;
    std::string data, synced_data;
    bool synced = true;  // data is synced_data
    std::map<std::string, NodePtr> entries, synced_entries;
    std::vector<Change> unsynced;
    std::weak_ptr<Process> locked_by;
  };

  explicit Disk(World* world) : world_(*world), root_(std::make_shared<Node>(/*directory=*/true)) {}

  // The disk as a process sees it; its calls take time, and do nothing any more once the process is dead. Of fibers of
  // the process only.
  std::unique_ptr<FileSystem> Mount(std::shared_ptr<Process> process);

  // Nobody may have a file open.
  void PowerFailure();

  void SetFull(bool full) { full_ = full; }
  // Of every call that changes something.
  void SetFailures(double probability) { failures_ = probability; }
  bool healthy() const { return !full_ && failures_ == 0; }
  uint64_t failed_calls() const { return failed_; }

  // For a test of every prefix of a sequence of calls: the process of the call with this number is killed in it.
  uint64_t calls() const { return calls_; }
  void KillAt(uint64_t call) { kill_at_ = call; }

 private:
  friend class MountedDisk;
  NodePtr Find(const std::filesystem::path& path) const;
  absl::StatusOr<NodePtr> FindDirectory(const std::filesystem::path& path) const;
  static void Apply(Node& directory, Change change);
  void Forget(Node& node);

  World& world_;
  NodePtr root_;
  bool full_ = false;
  double failures_ = 0;
  uint64_t failed_ = 0;
  uint64_t calls_ = 0;
  uint64_t kill_at_ = 0;
};

}  // namespace millrace::simulation
