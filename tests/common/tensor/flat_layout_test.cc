#include "common/tensor/flat_layout.h"

#include <rapidcheck/gtest.h>

#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

TEST(ParameterTableTest, ParametersLieBehindEachOther) {
  ParameterTable table;
  ASSERT_THAT(table.Add("weight", {32, 1, 3, 3}), IsOk());
  ASSERT_THAT(table.Add("bias", {32}), IsOk());
  ASSERT_THAT(table.Add("scale", {}), IsOk());
  EXPECT_EQ(table.size(), 321u);
  EXPECT_EQ(table.parameters()[1].offset, 288u);
  EXPECT_EQ(table.parameters()[2].offset, 320u);
  EXPECT_EQ(table.parameters()[2].size, 1u);
}

TEST(ParameterTableTest, StatisticsLieBehindTheParameters) {
  ParameterTable table;
  ASSERT_THAT(table.Add("weight", {7}), IsOk());
  EXPECT_EQ(table.statistics_size(), 0u);
  ASSERT_THAT(table.AddStatistic("mean", {3}), IsOk());
  EXPECT_EQ(table.size(), 10u);
  EXPECT_EQ(table.trainable_size(), 7u);
  EXPECT_EQ(table.statistics_size(), 3u);
  EXPECT_EQ(table.parameters()[1].offset, 7u);
  EXPECT_THAT(table.Add("late", {1}), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("late")));
  EXPECT_EQ(table.size(), 10u);
}

TEST(ParameterTableTest, RefusesWhatItCannotLayOut) {
  ParameterTable table;
  ASSERT_THAT(table.Add("weight", {3}), IsOk());
  EXPECT_THAT(table.Add("weight", {3}), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("twice")));
  EXPECT_THAT(table.Add("empty", {3, 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table.Add("negative", {-1, -1}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table.Add("huge", {int64_t{1} << 32, int64_t{1} << 32}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(table.size(), 3u);
}

TEST(ShardRangesTest, DefaultNetworkInTwo) {
  const auto ranges = ShardRanges(693962, 2);
  ASSERT_THAT(ranges, IsOk());
  EXPECT_EQ(*ranges, (std::vector<ElementRange>{{0, 347008}, {347008, 693962}}));
}

TEST(ShardRangesTest, RefusesEmptyShards) {
  EXPECT_THAT(ShardRanges(129, 3), IsOk());
  EXPECT_THAT(ShardRanges(129, 4), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ShardRanges(129, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ShardRanges(0, 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

RC_GTEST_PROP(ShardRangesTest, CoverEverythingOnceAlignedAndBalanced, ()) {
  const auto count = *rc::gen::inRange<uint64_t>(1, uint64_t{1} << 33);
  const uint64_t blocks = (count + kShardAlignment - 1) / kShardAlignment;
  const auto shards = *rc::gen::inRange<uint32_t>(1, static_cast<uint32_t>(std::min<uint64_t>(blocks, 1000)) + 1);
  const auto ranges = ShardRanges(count, shards);
  RC_ASSERT(ranges.ok());
  RC_ASSERT(ranges->size() == shards);
  uint64_t covered = 0;
  for (const ElementRange& range : *ranges) {
    RC_ASSERT(range.begin == covered);
    RC_ASSERT(range.begin % kShardAlignment == 0);
    RC_ASSERT(range.size() > 0);
    RC_ASSERT(range.size() <= count / shards + 2 * kShardAlignment);
    covered = range.end;
  }
  RC_ASSERT(covered == count);
}

}  // namespace
}  // namespace millrace
