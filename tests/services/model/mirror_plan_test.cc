#include "services/model/mirror_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Versions = std::vector<MirroredVersion>;

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

MirrorPlan Plan(const Versions& source, const Versions& local, const std::map<uint64_t, absl::Time>& retry_at = {},
                const std::vector<uint64_t>& pins = {}) {
  return PlanMirror(source, local, pins, retry_at, kNow);
}

TEST(MirrorPlanTest, TheNewestThatIsMissingComesFirst) {
  EXPECT_EQ(Plan({{30, "c"}, {20, "b"}, {10, "a"}}, {}).fetch, (MirroredVersion{30, "c"}));
  EXPECT_EQ(Plan({{30, "c"}, {20, "b"}, {10, "a"}}, {{30, "c"}}).fetch, (MirroredVersion{20, "b"}));
}

TEST(MirrorPlanTest, WithNothingMissingThereIsNothingToDo) {
  const MirrorPlan plan = Plan({{30, "c"}, {20, "b"}}, {{30, "c"}, {20, "b"}});
  EXPECT_FALSE(plan.fetch.has_value());
  EXPECT_THAT(plan.remove, IsEmpty());
}

TEST(MirrorPlanTest, AnotherVersionOfTheSameNumberIsFetchedAnew) {
  EXPECT_EQ(Plan({{30, "new"}}, {{30, "old"}}).fetch, (MirroredVersion{30, "new"}));
  EXPECT_EQ(Plan({{30, "new"}}, {{30, ""}}).fetch, (MirroredVersion{30, "new"})) << "one whose manifest is gone";
}

TEST(MirrorPlanTest, OneThatFailsDoesNotKeepTheOthersAway) {
  const Versions source = {{30, "c"}, {20, "b"}};
  EXPECT_EQ(Plan(source, {}, {{30, kNow + absl::Seconds(1)}}).fetch, (MirroredVersion{20, "b"}));
  EXPECT_EQ(Plan(source, {}, {{30, kNow}}).fetch, (MirroredVersion{30, "c"}));
}

TEST(MirrorPlanTest, RemovesWhatTheSourceNoLongerNamesOnceAllElseIsHere) {
  const Versions source = {{40, "d"}, {30, "c"}};
  EXPECT_THAT(Plan(source, {{50, "of another job"}, {40, "d"}, {30, "c"}, {20, "b"}}).remove, ElementsAre(50u, 20u));
  EXPECT_THAT(Plan(source, {{30, "c"}, {20, "b"}}).remove, IsEmpty()) << "40 may never come";
  EXPECT_THAT(Plan(source, {{30, "c"}, {20, "b"}}, {{40, kNow + absl::Seconds(1)}}).remove, IsEmpty());
}

TEST(MirrorPlanTest, WhatIsPinnedComesFirstAndStays) {
  const Versions source = {{40, "d"}, {30, "c"}, {10, "a"}};
  EXPECT_EQ(Plan(source, {}, {}, {10}).fetch, (MirroredVersion{10, "a"}));
  EXPECT_EQ(Plan(source, {}, {{10, kNow + absl::Seconds(1)}}, {10}).fetch, (MirroredVersion{40, "d"}));
  EXPECT_THAT(Plan(source, {{40, "d"}, {30, "c"}, {20, "b"}}, {}, {10}).remove, ElementsAre(20u))
      << "10 may never come, and is wanted for ever";
  EXPECT_THAT(Plan({{40, "d"}}, {{40, "d"}, {20, "b"}, {10, "a"}}, {}, {10}).remove, ElementsAre(20u))
      << "the source has lost it";
}

TEST(MirrorPlanTest, ASourceWithoutVersionsTakesNoneAway) { EXPECT_THAT(Plan({}, {{30, "c"}}).remove, IsEmpty()); }

}  // namespace
}  // namespace millrace
