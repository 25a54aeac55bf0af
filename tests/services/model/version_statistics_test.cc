#include "services/model/version_statistics.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(VersionStatisticsTest, RequestsRowsAndBatchesAreCountedApart) {
  VersionStatistics statistics;
  EXPECT_EQ(statistics.numbers().last, absl::InfinitePast());
  const absl::Time now = absl::FromUnixSeconds(1000);
  const InferenceAnswer answer{.values = {},
                               .rows = 3,
                               .batch_rows = 4,
                               .queue = absl::Microseconds(1),
                               .batch_wait = absl::Microseconds(2),
                               .compute = absl::Microseconds(3)};
  statistics.CountBatch(4, absl::Microseconds(3));
  statistics.CountBatch(4, absl::Microseconds(5));
  statistics.CountBatch(1, absl::Microseconds(1));
  statistics.CountAnswer(answer, absl::Microseconds(10), now);
  statistics.CountAnswer(answer, absl::Microseconds(5), now - absl::Seconds(1));  // less than its parts: side by side
  statistics.CountFailure(absl::Microseconds(7));

  const VersionStatistics::Numbers numbers = statistics.numbers();
  EXPECT_EQ(numbers.last, now);
  EXPECT_EQ(numbers.rows, 6u);
  EXPECT_EQ(numbers.batches, 3u);
  EXPECT_EQ(numbers.success.count, 2u);
  EXPECT_EQ(numbers.success.time, absl::Microseconds(15));
  EXPECT_EQ(numbers.queue.time, absl::Microseconds(2));
  EXPECT_EQ(numbers.batch_wait.time, absl::Microseconds(4));
  EXPECT_EQ(numbers.compute.time, absl::Microseconds(6));
  EXPECT_EQ(numbers.rest.count, 2u);
  EXPECT_EQ(numbers.rest.time, absl::Microseconds(4));
  EXPECT_EQ(numbers.fail.count, 1u);
  EXPECT_EQ(numbers.fail.time, absl::Microseconds(7));
  ASSERT_EQ(numbers.batch_sizes.size(), 2u);
  EXPECT_EQ(numbers.batch_sizes.at(4).count, 2u);
  EXPECT_EQ(numbers.batch_sizes.at(4).time, absl::Microseconds(8));
}

}  // namespace
}  // namespace millrace
