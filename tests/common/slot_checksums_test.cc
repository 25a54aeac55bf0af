#include "common/slot_checksums.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const SlotChecksums kTwoSteps{.first_step = 99, .slots = 2, .values = {1, 0xfedcba9876543210, 0, ~uint64_t{0}}};
constexpr char kTwoStepsText[] =
    "millrace-slot-checksums 1\n"
    "99 0000000000000001 fedcba9876543210\n"
    "100 0000000000000000 ffffffffffffffff\n";

TEST(SlotChecksumsTest, AreTextWithALineForEachStep) {
  EXPECT_EQ(SlotChecksumsToText(kTwoSteps), kTwoStepsText);
  const auto read = SlotChecksumsFromText(kTwoStepsText);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(*read, kTwoSteps);
}

TEST(SlotChecksumsTest, KnowWhichStepsTheyAreOf) {
  EXPECT_FALSE(kTwoSteps.Has(98));
  EXPECT_TRUE(kTwoSteps.Has(99));
  EXPECT_TRUE(kTwoSteps.Has(100));
  EXPECT_FALSE(kTwoSteps.Has(101));
  EXPECT_THAT(kTwoSteps.Of(100), ElementsAre(0, ~uint64_t{0}));
  EXPECT_FALSE(SlotChecksums().Has(0));
}

TEST(SlotChecksumsTest, WhateverIsDamagedIsRefusedByItsLine) {
  const std::string head = "millrace-slot-checksums 1\n", good = "7 0000000000000001 0000000000000002\n";
  const auto fails = [&](const std::string& text, const std::string& why) {
    EXPECT_THAT(SlotChecksumsFromText(text), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(why))) << text;
  };
  ASSERT_THAT(SlotChecksumsFromText(head + good), IsOk());
  fails("", "no step");
  fails(head, "no step");
  fails("something else\n" + good, "line 1");
  fails(head + "7\n", "line 2");
  fails(head + "7 \n", "line 2");
  fails(head + "x 0000000000000001\n", "line 2");
  fails(head + "07 0000000000000001\n", "line 2");
  fails(head + "-7 0000000000000001\n", "line 2");
  fails(head + "18446744073709551615 0000000000000001\n", "line 2");
  fails(head + "7 000000000000001\n", "line 2");
  fails(head + "7 000000000000000g\n", "line 2");
  fails(head + "7 000000000000000A\n", "line 2");
  fails(head + "\n", "line 2");
  fails(head + good + good, "line 3");                                     // again
  fails(head + good + "9 0000000000000001 0000000000000002\n", "line 3");  // a gap
  fails(head + good + "8 0000000000000001\n", "line 3");                   // another number of slots
  fails(head + good + "8 0000000000000001 0000000000000002", "line 3");    // torn
  EXPECT_THAT(SlotChecksumsFromText("millrace-slot-checksums 2\n" + good),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("millrace-slot-checksums 2")));
}

TEST(SlotChecksumsTest, NeverMoreThanTheLimit) {
  std::string line(kSlotChecksumsMax * 17, '0');
  for (size_t i = 0; i < line.size(); i += 17) line[i] = ' ';
  ASSERT_THAT(SlotChecksumsFromText("millrace-slot-checksums 1\n0" + line + "\n"), IsOk());
  EXPECT_THAT(SlotChecksumsFromText("millrace-slot-checksums 1\n0 0000000000000000" + line + "\n"),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("line 2")));
}

}  // namespace
}  // namespace millrace
