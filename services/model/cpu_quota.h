// How many processors this process may really use: in a container that is the cgroup's quota, not the machine's count.
#pragma once

#include <filesystem>
#include <optional>

namespace millrace {

// Whole processors, at least 1: the least of the affinity mask's count and the cgroup's quota, rounded up.
int UsableProcessors();

// The tightest CPU quota, in processors, on the way from the process's cgroup to the root of the hierarchy; nothing if
// there is none. Understands cgroup v2 and v1. `proc` and `cgroup` are where those file systems are mounted.
std::optional<double> CgroupCpuQuota(const std::filesystem::path& proc = "/proc",
                                     const std::filesystem::path& cgroup = "/sys/fs/cgroup");

}  // namespace millrace
