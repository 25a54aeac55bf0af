#include "services/cli/replay_command.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

const ReplayResult kEqual{.step = 1200,
                          .slot = 3,
                          .start_version = 1199,
                          .recorded = 0xab,
                          .recomputed = 0xab,
                          .comparison = {.steps = 2, .slots = 8}};

TEST(ReplayCommandTest, SaysThatAllIsEqual) {
  EXPECT_EQ(FormatReplay(kEqual),
            "step 1,200 slot 3  recorded 00000000000000ab  recomputed 00000000000000ab  equal\n"
            "PASS: all 8 slots of 2 steps are what they were\n");
  const auto json = nlohmann::json::parse(ReplayJson(kEqual));
  EXPECT_EQ(json["equal"], true);
  EXPECT_EQ(json["step"], 1200);
  EXPECT_EQ(json["slot"], 3);
  EXPECT_EQ(json["start_version"], 1199);
  EXPECT_EQ(json["slots_compared"], 8);
  EXPECT_TRUE(json["first_difference"].is_null());
}

TEST(ReplayCommandTest, NamesTheFirstThatDiffersAlsoIfItIsNotTheOneAskedFor) {
  ReplayResult result = kEqual;
  result.comparison.differences = 1;
  result.comparison.first = SlotDifference{.step = 1199, .slot = 2, .before = 1, .after = 2};
  EXPECT_FALSE(result.equal());
  EXPECT_EQ(FormatReplay(result),
            "step 1,200 slot 3  recorded 00000000000000ab  recomputed 00000000000000ab  equal\n"
            "FAIL: the first that differs is slot 2 of step 1,199 (recorded 0000000000000001, recomputed "
            "0000000000000002); of 8 slots in 2 steps 1 differs\n");
  const auto json = nlohmann::json::parse(ReplayJson(result));
  EXPECT_EQ(json["equal"], false);
  EXPECT_EQ(json["differences"], 1);
  EXPECT_EQ(json["first_difference"]["step"], 1199);
  EXPECT_EQ(json["first_difference"]["slot"], 2);
  EXPECT_EQ(json["first_difference"]["recomputed"], "0000000000000002");
}

}  // namespace
}  // namespace millrace
