#include "services/parameter_server/round_state.h"

#include <cmath>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr RoundId kStep{v1::Lease::KIND_TRAIN, 7};

v1::UnitResult Result(uint32_t unit, double loss = 1, uint64_t checksum = 9) {
  v1::UnitResult result;
  result.set_unit(unit);
  result.set_samples(2);
  result.set_correct(1);
  result.set_loss_sum(loss);
  result.set_checksum(checksum);
  result.set_visits(uint64_t{1} << 63 | unit);
  return result;
}

TEST(RoundStateTest, CountsTheVisitsOfEveryUnitOnce) {
  RoundState round(kStep, 3);
  for (const uint32_t unit : {2u, 0u, 2u, 1u, 0u}) round.Accept(Result(unit));
  EXPECT_EQ(round.Sums().visits, (uint64_t{1} << 63) + 3) << "mod 2^64";
  v1::UnitResult other = Result(1);
  other.set_visits(5);
  EXPECT_EQ(round.Accept(other), RoundState::Verdict::kMismatch) << "other samples";
}

TEST(RoundStateTest, TakesAlignedRangesAndShortOnesAtTheEnd) {
  RoundState round(kStep, 6);
  EXPECT_EQ(round.Take(1, 4, {})->end, 4u);
  const auto last = round.Take(2, 4, {});
  EXPECT_EQ(last->begin, 4u);
  EXPECT_EQ(last->end, 6u);
  EXPECT_FALSE(round.Take(3, 1, {}).has_value());
  EXPECT_EQ(round.free_units(), 0u);
}

TEST(RoundStateTest, TakesANarrowerRangeWhereNoWideOneIsFree) {
  RoundState round(kStep, 4);
  ASSERT_EQ(round.Take(1, 1, {})->begin, 0u);
  ASSERT_EQ(round.Take(2, 4, {})->begin, 2u);  // two wide
  EXPECT_EQ(round.Take(3, 4, {})->begin, 1u);
}

TEST(RoundStateTest, AvoidsWhatItIsToldTo) {
  RoundState round(kStep, 4);
  const UnitRange avoid{0, 2};
  EXPECT_EQ(round.Take(1, 2, std::span(&avoid, 1))->begin, 2u);
  EXPECT_FALSE(round.Take(2, 2, std::span(&avoid, 1)).has_value());
}

TEST(RoundStateTest, ReleasesOnlyWhatTheLeaseStillHolds) {
  RoundState round(kStep, 4);
  const UnitRange range = *round.Take(1, 4, {});
  round.Accept(Result(1));
  EXPECT_EQ(round.Release(1, range), 3u);
  EXPECT_EQ(round.Release(1, range), 0u);
  ASSERT_EQ(round.Take(2, 2, {})->begin, 2u);
  EXPECT_EQ(round.Release(1, range), 0u) << "the second lease's units are not the first one's";
  EXPECT_EQ(round.FirstMissing(), 0u);
}

TEST(RoundStateTest, ARangeIsMissingUntilAllOfItIsDone) {
  RoundState round(kStep, 4);
  round.Accept(Result(2));
  EXPECT_TRUE(round.IsMissing({2, 4}));
  round.Accept(Result(3));
  EXPECT_FALSE(round.IsMissing({2, 4}));
  EXPECT_TRUE(round.IsMissing({0, 4}));
}

TEST(RoundStateTest, AcceptsOnceAndComparesDuplicates) {
  RoundState round(kStep, 2);
  EXPECT_EQ(round.Accept(Result(0)), RoundState::Verdict::kAccepted);
  EXPECT_EQ(round.Accept(Result(0)), RoundState::Verdict::kDuplicate);
  EXPECT_EQ(round.Accept(Result(0, 1, 10)), RoundState::Verdict::kMismatch);
  EXPECT_EQ(round.Accept(Result(0, std::nextafter(1.0, 2.0))), RoundState::Verdict::kMismatch);
  EXPECT_FALSE(round.complete());
  EXPECT_EQ(round.Accept(Result(1, NAN)), RoundState::Verdict::kAccepted);
  EXPECT_EQ(round.Accept(Result(1, NAN)), RoundState::Verdict::kDuplicate);
  EXPECT_TRUE(round.complete());
  EXPECT_EQ(round.Sums().samples, 4u);
  EXPECT_EQ(round.Sums().correct, 2u);
}

TEST(RoundStateTest, SumsDoNotDependOnTheOrderOfArrival) {
  RoundState forward(kStep, 3), backward(kStep, 3);
  const double losses[] = {1e16, 1, -1e16};
  for (const uint32_t unit : {0u, 1u, 2u}) forward.Accept(Result(unit, losses[unit]));
  for (const uint32_t unit : {2u, 1u, 0u}) backward.Accept(Result(unit, losses[unit]));
  EXPECT_EQ(forward.Sums().loss, backward.Sums().loss);
}

}  // namespace
}  // namespace millrace
