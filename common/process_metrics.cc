#include "common/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/files.h"

namespace millrace {
namespace {

constexpr size_t kProcFileBytesMax = 4 << 20;

using prometheus::MetricFamily;
using prometheus::MetricType;

void Add(std::vector<MetricFamily>& families, const char* name, const char* help, MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  families.push_back({name, help, type, {metric}});
}

// Seconds since 1970 at which the machine started.
std::optional<double> BootTime() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/stat", kProcFileBytesMax);
  if (!text.ok()) return std::nullopt;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    double seconds;
    if (line.substr(0, 6) == "btime " && absl::SimpleAtod(line.substr(6), &seconds)) return seconds;
  }
  return std::nullopt;
}

// From /proc/self/stat, see proc(5).
void AddStat(std::vector<MetricFamily>& families) {
  const absl::StatusOr<std::string> text = ReadFile("/proc/self/stat", kProcFileBytesMax);
  if (!text.ok()) return;
  // The second field, the program's name in parentheses, may hold anything; what follows it is field 3 and up.
  const size_t name_end = text->rfind(')');
  if (name_end == std::string::npos) return;
  const std::vector<std::string> fields = absl::StrSplit(text->substr(name_end + 1), ' ', absl::SkipEmpty());
  constexpr size_t kFirstField = 3;
  const auto field = [&](size_t number) {
    double value = 0;
    if (number - kFirstField < fields.size() && !absl::SimpleAtod(fields[number - kFirstField], &value)) value = 0;
    return value;
  };
  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  Add(families, "process_cpu_seconds_total", "User and system CPU time spent.", MetricType::Counter,
      (field(14) + field(15)) / ticks_per_second);
  Add(families, "process_threads", "Threads of the process.", MetricType::Gauge, field(20));
  Add(families, "process_virtual_memory_bytes", "Size of the address space.", MetricType::Gauge, field(23));
  Add(families, "process_resident_memory_bytes", "Memory in RAM.", MetricType::Gauge, field(24) * page_bytes);
  if (const std::optional<double> boot = BootTime()) {
    Add(families, "process_start_time_seconds", "Start of the process in seconds since 1970.", MetricType::Gauge,
        *boot + field(22) / ticks_per_second);
  }
}

void AddDescriptors(std::vector<MetricFamily>& families) {
  std::error_code error;
  double count = 0;
  std::filesystem::directory_iterator entry("/proc/self/fd", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) ++count;
  if (!error && count > 0) {
    Add(families, "process_open_fds", "Open file descriptors.", MetricType::Gauge,
        count - 1);  // less the one that lists them
  }
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    Add(families, "process_max_fds", "Most file descriptors the process may open.", MetricType::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace

std::vector<MetricFamily> CollectProcessMetrics() {
  std::vector<MetricFamily> families;
  AddStat(families);
  AddDescriptors(families);
  return families;
}

}  // namespace millrace
