#include "common/augmentation.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(ParseAugmentationTest, AnyOfThemInAnyOrder) {
  const absl::StatusOr<v1::Augmentation> all = ParseAugmentation("elastic=4,shift=2,rotate=10.5,scale=0.1");
  ASSERT_THAT(all, IsOk());
  EXPECT_EQ(all->shift(), 2);
  EXPECT_EQ(all->rotate(), 10.5);
  EXPECT_EQ(all->scale(), 0.1);
  EXPECT_EQ(all->elastic(), 4);
  EXPECT_TRUE(HasEffect(*all));
  EXPECT_EQ(FormatAugmentation(*all), "shift=2,rotate=10.5,scale=0.1,elastic=4");

  const absl::StatusOr<v1::Augmentation> one = ParseAugmentation("rotate=15");
  ASSERT_THAT(one, IsOk());
  EXPECT_EQ(FormatAugmentation(*one), "rotate=15");
  EXPECT_TRUE(HasEffect(*one));
}

TEST(ParseAugmentationTest, None) {
  const absl::StatusOr<v1::Augmentation> none = ParseAugmentation("none");
  ASSERT_THAT(none, IsOk());
  EXPECT_FALSE(HasEffect(*none));
  EXPECT_EQ(FormatAugmentation(*none), "none");
  EXPECT_FALSE(HasEffect(*ParseAugmentation("shift=0")));
}

TEST(ParseAugmentationTest, NamesWhatIsWrong) {
  EXPECT_THAT(ParseAugmentation("blur=2"), StatusIs(kInvalid, HasSubstr("'blur=2' is none of")));
  EXPECT_THAT(ParseAugmentation(""), StatusIs(kInvalid, HasSubstr("'' is none of")));
  EXPECT_THAT(ParseAugmentation("shift=2,"), StatusIs(kInvalid, HasSubstr("'' is none of")));
  EXPECT_THAT(ParseAugmentation("none,shift=2"), StatusIs(kInvalid, HasSubstr("'none'")));
  EXPECT_THAT(ParseAugmentation("shift"), StatusIs(kInvalid, HasSubstr("'shift' needs a number")));
  EXPECT_THAT(ParseAugmentation("scale=big"), StatusIs(kInvalid, HasSubstr("'scale=big' needs a number")));
  EXPECT_THAT(ParseAugmentation("scale=0.95"), StatusIs(kInvalid, HasSubstr("scale 0.95 is not in [0, 0.9]")));
  EXPECT_THAT(ParseAugmentation("rotate=-1"), StatusIs(kInvalid, HasSubstr("rotate -1")));
  EXPECT_THAT(ParseAugmentation("rotate=nan"), StatusIs(kInvalid, HasSubstr("rotate nan")));
}

TEST(CheckAugmentationTest, HoldsEveryFieldToItsLimit) {
  v1::Augmentation augmentation;
  augmentation.set_shift(64);
  augmentation.set_rotate(180);
  augmentation.set_scale(0.9);
  augmentation.set_elastic(32);
  EXPECT_THAT(CheckAugmentation(augmentation), IsOk());
  augmentation.set_elastic(32.5);
  EXPECT_THAT(CheckAugmentation(augmentation), StatusIs(kInvalid, HasSubstr("elastic 32.5 is not in [0, 32]")));
  augmentation.set_elastic(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(CheckAugmentation(augmentation), StatusIs(kInvalid, HasSubstr("elastic")));
}

}  // namespace
}  // namespace millrace
