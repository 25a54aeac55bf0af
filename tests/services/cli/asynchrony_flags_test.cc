#include "services/cli/asynchrony_flags.h"

#include <algorithm>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/cli/train_options.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<v1::JobSpec> Apply(std::vector<std::string> arguments, const v1::JobSpec* previous = nullptr) {
  JobFlags flags;
  CLI::App app;
  AddAsynchronyFlags(app, flags.asynchrony, "");
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  return MakeJobSpec(flags, previous, 60'000);
}

auto Refuses(const std::string& why) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)); }

TEST(AsynchronyFlagsTest, WithoutThemOrWithZeroTheJobIsSynchronous) {
  EXPECT_FALSE(Apply({})->has_asynchrony());
  EXPECT_FALSE(Apply({"--staleness", "0"})->has_asynchrony());
  EXPECT_EQ(DescribeAsynchrony(*Apply({})), "");
  const v1::JobSpec stale = *Apply({"--staleness", "2"});
  EXPECT_EQ(Apply({}, &stale)->asynchrony().staleness(), 2u) << "a run that is resumed";
  EXPECT_FALSE(Apply({"--staleness", "0"}, &stale)->has_asynchrony());
}

TEST(AsynchronyFlagsTest, StalenessIsANumberOrUnbounded) {
  EXPECT_EQ(Apply({"--staleness", "16"})->asynchrony().staleness(), 16u);
  EXPECT_TRUE(Apply({"--staleness", "unbounded"})->asynchrony().unbounded());
  for (const char* bad : {"17", "-1", "much"}) {
    EXPECT_THAT(Apply({std::string("--staleness=") + bad}), Refuses("is neither a number from 0 to 16 nor 'unbounded'"));
  }
}

TEST(AsynchronyFlagsTest, PoliciesAndWhatDoesNotGoTogether) {
  const v1::JobSpec compensated = *Apply({"--staleness", "1", "--stale-gradients", "compensated"});
  EXPECT_EQ(compensated.asynchrony().stale_gradients(), v1::STALE_GRADIENTS_COMPENSATED);
  EXPECT_GT(compensated.asynchrony().compensation(), 0);
  EXPECT_EQ(Apply({"--staleness", "1", "--stale-gradients", "compensated", "--compensation", "0.5"})
                ->asynchrony()
                .compensation(),
            0.5);
  EXPECT_THAT(Apply({"--staleness", "1", "--compensation", "0.5"}), Refuses("only for --stale-gradients compensated"));
  EXPECT_THAT(Apply({"--staleness", "unbounded", "--stale-gradients", "compensated"}), Refuses("must have a bound"));
  for (const char* policy : {"as-they-are", "smaller-steps", "compensated"}) {
    EXPECT_THAT(Apply({"--stale-gradients", policy}), Refuses("only for a --staleness over 0")) << policy;
  }
}

TEST(AsynchronyFlagsTest, SaysWhatItMakesOfBatchAndRate) {
  EXPECT_EQ(DescribeAsynchrony(*Apply({"--staleness", "4"})),
            "asynchronous: gradients up to 4 steps old, so up to 640 samples under way at once; learning rate 0.001 "
            "however old they are");
  EXPECT_EQ(DescribeAsynchrony(*Apply({"--staleness", "1", "--stale-gradients", "smaller-steps"})),
            "asynchronous: gradients up to 1 step old, so up to 256 samples under way at once; learning rate from 0.001 "
            "down to 0.0005");
  EXPECT_THAT(DescribeAsynchrony(*Apply({"--staleness", "unbounded"})), HasSubstr("; not reproducible"));
}

}  // namespace
}  // namespace millrace
