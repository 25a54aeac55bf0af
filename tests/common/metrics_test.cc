#include "common/metrics.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// The value of a series without labels in Prometheus text; NaN if it is not there.
double ValueOf(const std::string& text, const std::string& name) {
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    double value;
    if (line.rfind(name + " ", 0) == 0 && absl::SimpleAtod(line.substr(name.size() + 1), &value)) return value;
  }
  return std::nan("");
}

TEST(MetricsTest, RendersWhatWasCounted) {
  Metrics metrics("millrace-test");
  metrics.Counter("millrace_test_events_total", "Events.", {{"kind", "a"}}).Increment(3);
  metrics.Gauge("millrace_test_level", "Level.").Set(-1.5);
  metrics.Histogram("millrace_test_seconds", "Times.", {0.1, 1}).Observe(0.5);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("# TYPE millrace_test_events_total counter\nmillrace_test_events_total{kind=\"a\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("millrace_test_level -1.5\n"));
  EXPECT_THAT(text, HasSubstr("millrace_test_seconds_bucket{le=\"0.1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("millrace_test_seconds_bucket{le=\"1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("millrace_test_seconds_bucket{le=\"+Inf\"} 1\n"));
}

TEST(MetricsTest, TheSameNameAndLabelsAreTheSameMetric) {
  Metrics metrics("millrace-test");
  EXPECT_EQ(&metrics.Counter("a_total", "A."), &metrics.Counter("a_total", "A."));
  EXPECT_NE(&metrics.Counter("a_total", "A.", {{"x", "1"}}), &metrics.Counter("a_total", "A.", {{"x", "2"}}));
  EXPECT_ANY_THROW(metrics.Gauge("a_total", "A."));
}

TEST(MetricsTest, SaysWhatRuns) {
  const std::string text = Metrics("millrace-test").Render();
  EXPECT_THAT(text, HasSubstr("millrace_build_info{"));
  EXPECT_THAT(text, HasSubstr("service=\"millrace-test\""));
  EXPECT_THAT(text, HasSubstr("version=\""));
}

TEST(MetricsTest, ProcessSeriesAreInBaseUnitsAndPlausible) {
  const std::string text = Metrics("millrace-test").Render();
  EXPECT_GT(ValueOf(text, "process_resident_memory_bytes"), 1e6);
  EXPECT_GT(ValueOf(text, "process_virtual_memory_bytes"), ValueOf(text, "process_resident_memory_bytes"));
  EXPECT_LT(ValueOf(text, "process_cpu_seconds_total"), 600);
  EXPECT_GE(ValueOf(text, "process_cpu_seconds_total"), 0);
  EXPECT_GE(ValueOf(text, "process_threads"), 1);
  EXPECT_GT(ValueOf(text, "process_max_fds"), 2);
  const double now = absl::ToUnixSeconds(absl::Now());
  EXPECT_NEAR(ValueOf(text, "process_start_time_seconds"), now, 600);
}

TEST(MetricsTest, OpenFileDescriptorsAreCounted) {
  const double before = ValueOf(Metrics("t").Render(), "process_open_fds");
  const int fd = dup(0);
  EXPECT_EQ(ValueOf(Metrics("t").Render(), "process_open_fds"), before + 1);
  close(fd);
}

TEST(MetricsTest, LatencyBucketsAscend) {
  EXPECT_TRUE(std::is_sorted(LatencyBuckets().begin(), LatencyBuckets().end()));
}

}  // namespace
}  // namespace millrace
