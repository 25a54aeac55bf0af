#include "tests/integration/small_disk.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iostream>
#include <system_error>

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRoomyBytes = size_t{512} << 20;
constexpr size_t kPageBytes = 4096;     // the least a file system in memory can have; 0 means no limit
constexpr size_t kUlimitBlock = 512;    // bytes, of POSIX `ulimit -f`
constexpr char kFullMarker[] = "full";  // exists while the stand-in is full

void Check(int result, const std::string& what) {
  if (result != 0) throw std::system_error(errno, std::generic_category(), what);
}

std::string SizeOption(size_t bytes) { return "size=" + std::to_string(bytes); }

// Of a thread's own, whose mounts nobody else sees.
bool EnterMountNamespace() {
  return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

// Programs for --bin-dir: a parameter server that is limited while the marker is there, the others as they are.
void WriteLimitedPrograms(const fs::path& directory) {
  const fs::path real = MILLRACE_BIN_DIR;
  for (const char* program : {"millrace-data", "millrace-worker", "millrace-model"}) {
    fs::create_symlink(real / program, directory / program);
  }
  std::ofstream(directory / "millrace-ps")
      << "#!/bin/sh\ntrap '' XFSZ\n"
      << "bytes=$(cat " << directory / kFullMarker << " 2> /dev/null) && ulimit -S -f $((bytes / " << kUlimitBlock
      << "))\nexec " << real / "millrace-ps"
      << " \"$@\"\n";
  fs::permissions(directory / "millrace-ps", fs::perms::owner_all);
}

}  // namespace

SmallDisk::SmallDisk() {
  fs::create_directory(root_);
  mounted_ = EnterMountNamespace() && mount("tmpfs", root_.c_str(), "tmpfs", 0, SizeOption(kRoomyBytes).c_str()) == 0;
  if (mounted_) return;
  std::cerr << "NO FILE SYSTEM CAN BE MOUNTED HERE (" << std::generic_category().message(errno)
            << "): a limit on the size of files plays the full disk" << std::endl;
  fs::create_directory(programs_);
  WriteLimitedPrograms(programs_);
}

SmallDisk::~SmallDisk() {
  if (mounted_) umount2(root_.c_str(), MNT_DETACH);
}

std::vector<std::string> SmallDisk::flags() const {
  if (mounted_) return {};
  return {"--bin-dir", programs_.string()};
}

void SmallDisk::Fill(size_t bytes_left) {
  if (!mounted_) {
    std::ofstream(programs_ / kFullMarker) << bytes_left;
    return;
  }
  struct statvfs info;
  Check(statvfs(root_.c_str(), &info), "statvfs");
  const size_t used = (info.f_blocks - info.f_bfree) * info.f_frsize;
  const std::string size = SizeOption(std::max(used + bytes_left, kPageBytes));
  Check(mount("tmpfs", root_.c_str(), "tmpfs", MS_REMOUNT, size.c_str()), "remount");
}

void SmallDisk::Free(const Program* running) {
  if (mounted_) {
    Check(mount("tmpfs", root_.c_str(), "tmpfs", MS_REMOUNT, SizeOption(kRoomyBytes).c_str()), "remount");
    return;
  }
  fs::remove(programs_ / kFullMarker);
  if (running == nullptr) return;
  for (const pid_t server : running->Children("millrace-ps")) {
    rlimit limit;
    Check(prlimit(server, RLIMIT_FSIZE, nullptr, &limit), "prlimit");
    limit.rlim_cur = limit.rlim_max;
    Check(prlimit(server, RLIMIT_FSIZE, &limit, nullptr), "prlimit");
  }
}

}  // namespace millrace
