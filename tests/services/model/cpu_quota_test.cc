#include "services/model/cpu_quota.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

void Write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

TEST(CgroupCpuQuota, Version2TakesTheTightestOnTheWayToTheRoot) {
  const TemporaryDirectory root;
  Write(root / "proc/self/cgroup", "0::/kubepods/pod1/container\n");
  Write(root / "cgroup/kubepods/pod1/container/cpu.max", "max 100000\n");
  Write(root / "cgroup/kubepods/pod1/cpu.max", "150000 100000\n");
  Write(root / "cgroup/kubepods/cpu.max", "400000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(root / "proc", root / "cgroup"), 1.5);
}

TEST(CgroupCpuQuota, Version2InANamespaceReadsTheMountPoint) {
  const TemporaryDirectory root;
  Write(root / "proc/self/cgroup", "0::/\n");
  Write(root / "cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(root / "proc", root / "cgroup"), 2.0);
}

TEST(CgroupCpuQuota, Version1) {
  const TemporaryDirectory root;
  Write(root / "proc/self/cgroup", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n");
  Write(root / "cgroup/cpu/docker/a/cpu.cfs_quota_us", "50000");
  Write(root / "cgroup/cpu/docker/a/cpu.cfs_period_us", "100000");
  Write(root / "cgroup/cpu/cpu.cfs_quota_us", "-1");
  Write(root / "cgroup/cpu/cpu.cfs_period_us", "100000");
  EXPECT_EQ(CgroupCpuQuota(root / "proc", root / "cgroup"), 0.5);
}

TEST(CgroupCpuQuota, NoneWithoutALimitOrWithoutCgroups) {
  const TemporaryDirectory root;
  EXPECT_FALSE(CgroupCpuQuota(root / "proc", root / "cgroup").has_value());
  Write(root / "proc/self/cgroup", "0::/a\nnonsense\n");
  Write(root / "cgroup/a/cpu.max", "max 100000\n");
  EXPECT_FALSE(CgroupCpuQuota(root / "proc", root / "cgroup").has_value());
}

TEST(UsableProcessors, AtLeastOne) { EXPECT_GE(UsableProcessors(), 1); }

}  // namespace
}  // namespace millrace
