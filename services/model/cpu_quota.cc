#include "services/model/cpu_quota.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

// cpu.max: "MICROSECONDS|max PERIOD".
std::optional<double> QuotaV2(const fs::path& directory) {
  std::ifstream file(directory / "cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

std::optional<double> QuotaV1(const fs::path& directory) {
  std::ifstream quota_file(directory / "cpu.cfs_quota_us");
  std::ifstream period_file(directory / "cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

// `path` is the process's cgroup as /proc says it. Inside a container it may name a directory of the host that is not
// mounted here; its parents, up to the mount point, are looked at all the same.
template <typename ReadQuota>
std::optional<double> Tightest(const fs::path& mount, const fs::path& path, ReadQuota read_quota) {
  std::optional<double> tightest;
  for (fs::path at = path.relative_path();; at = at.parent_path()) {
    if (std::optional<double> quota = read_quota(mount / at)) tightest = std::min(tightest.value_or(*quota), *quota);
    if (at.empty()) return tightest;
  }
}

}  // namespace

std::optional<double> CgroupCpuQuota(const fs::path& proc, const fs::path& cgroup) {
  std::ifstream file(proc / "self" / "cgroup");
  std::optional<double> tightest;
  for (std::string line; std::getline(file, line);) {
    // "HIERARCHY:CONTROLLERS:PATH"; version 2 is hierarchy 0 without controllers.
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    std::optional<double> quota;
    if (parts[1].empty()) {
      quota = Tightest(cgroup, parts[2], QuotaV2);
    } else {
      const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
      if (std::find(controllers.begin(), controllers.end(), "cpu") == controllers.end()) continue;
      quota = Tightest(cgroup / "cpu", parts[2], QuotaV1);
    }
    if (quota) tightest = std::min(tightest.value_or(*quota), *quota);
  }
  return tightest;
}

int UsableProcessors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int processors = sched_getaffinity(0, sizeof(mask), &mask) == 0
                       ? CPU_COUNT(&mask)
                       : static_cast<int>(std::thread::hardware_concurrency());
  if (std::optional<double> quota = CgroupCpuQuota()) processors = std::min<int>(processors, std::ceil(*quota));
  return std::max(processors, 1);
}

}  // namespace millrace
