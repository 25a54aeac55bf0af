#include "services/model/service_time.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

absl::Duration Time(uint32_t rows) { return absl::Microseconds(100) + rows * absl::Microseconds(50); }

double Off(const ServiceTime& time, uint32_t rows) { return absl::FDivDuration(time.Estimate(rows), Time(rows)); }

TEST(ServiceTime, KnowsNothingThenTakesTheFirstForEverySize) {
  ServiceTime time;
  EXPECT_EQ(time.Estimate(32), absl::ZeroDuration());
  time.Observe(4, absl::Milliseconds(1));
  EXPECT_EQ(time.Estimate(1), absl::Milliseconds(1));
  EXPECT_EQ(time.Estimate(4), absl::Milliseconds(1));
  EXPECT_EQ(time.Estimate(8), absl::Milliseconds(2));
  EXPECT_EQ(time.Estimate(2048), absl::Milliseconds(512));
}

TEST(ServiceTime, OneObservationOfEachSizeIsEnoughForALine) {
  ServiceTime time;
  for (uint32_t rows = 1; rows <= 32; rows *= 2) time.Observe(rows, Time(rows));
  for (uint32_t rows = 1; rows <= 32; ++rows) EXPECT_NEAR(Off(time, rows), 1, 1e-6) << rows;
}

TEST(ServiceTime, FollowsAChangeAndRemembersTheSizesThatDoNotCome) {
  ServiceTime time;
  for (uint32_t rows = 1; rows <= 32; rows *= 2) time.Observe(rows, Time(rows));
  for (int i = 0; i < 1000; ++i) time.Observe(1, 2 * Time(1));
  EXPECT_NEAR(Off(time, 1), 2, 0.01);
  EXPECT_NEAR(Off(time, 32), 1, 0.01);
  for (int i = 0; i < 1000; ++i) time.Observe(24, 2 * Time(24));
  EXPECT_NEAR(Off(time, 24), 2, 0.01);
}

TEST(ServiceTime, OneStallIsNotTheRule) {
  ServiceTime time;
  for (int i = 0; i < 20; ++i) time.Observe(1, Time(1));
  time.Observe(1, absl::Seconds(10));
  EXPECT_LT(Off(time, 1), 1.3);
  time.Observe(1, absl::ZeroDuration());  // no such time
  EXPECT_GT(Off(time, 1), 1);
}

}  // namespace
}  // namespace millrace
