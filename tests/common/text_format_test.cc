#include "common/text_format.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(TextFormatTest, Clock) {
  EXPECT_EQ(FormatClock(absl::ZeroDuration()), "0:00");
  EXPECT_EQ(FormatClock(absl::Milliseconds(7999)), "0:07");
  EXPECT_EQ(FormatClock(absl::Seconds(59 * 60 + 59)), "59:59");
  EXPECT_EQ(FormatClock(absl::Seconds(3600 + 2 * 60 + 3)), "1:02:03");
  EXPECT_EQ(FormatClock(absl::InfiniteDuration()), "-:--");
  EXPECT_EQ(FormatClock(-absl::Seconds(1)), "-:--");
}

TEST(TextFormatTest, CountAndPercent) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatPercent(0.98412), "98.41 %");
}

TEST(TextFormatTest, State) { EXPECT_EQ(FormatState("STATE_TRAINING"), "training"); }

TEST(TextFormatTest, FitToWidthNeverExceedsTheWidth) {
  EXPECT_EQ(FitToWidth("step 812", 8), "step 812");
  EXPECT_EQ(FitToWidth("step 8123", 8), "step ...");
  EXPECT_EQ(FitToWidth("step", 2), "st");
  EXPECT_EQ(FitToWidth("step", 0), "");
}

TEST(TextFormatTest, MessageOfLogLine) {
  EXPECT_EQ(MessageOfLogLine("2026-01-31T12:00:00.123Z E millrace-ps: no such file code=NOT_FOUND"), "no such file");
  EXPECT_EQ(MessageOfLogLine("2026-01-31T12:00:00.123Z I millrace-ps: joined worker=w step=812"),
            "joined worker=w step=812");
  EXPECT_EQ(MessageOfLogLine("millrace-data: --data-dir is required"), "--data-dir is required");
  EXPECT_EQ(MessageOfLogLine("terminate called"), "terminate called");
  EXPECT_EQ(MessageOfLogLine(""), "");
}

TEST(TextFormatTest, TableAlignsValues) {
  EXPECT_EQ(FormatTable({{"a", "1"}, {"long", "2"}}), "  a     1\n  long  2\n");
  EXPECT_EQ(FormatTable({}), "");
}

}  // namespace
}  // namespace millrace
