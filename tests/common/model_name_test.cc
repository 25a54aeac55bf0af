#include "common/model_name.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(ModelNameTest, LettersDigitsAndThreeMarks) {
  for (const std::string& name : {std::string("mnist"), std::string("a"), std::string("7"), std::string("Net-2_b.v1"),
                                  std::string("a..b"), std::string(128, 'x')}) {
    EXPECT_THAT(CheckModelName("model_name", name), IsOk()) << name;
  }
}

// It must stay inside the repository, in a URL and in a label, and must not look like an option or an export in
// progress.
TEST(ModelNameTest, AnythingElseIsRefused) {
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string(".hidden"), std::string("-rf"),
        std::string("_x"), std::string("../etc"), std::string("a/b"), std::string("a b"), std::string("a\n"),
        std::string("a\0b", 3), std::string("na\xc3\xafve"), std::string(129, 'x')}) {
    EXPECT_FALSE(IsModelName(name)) << name;
    EXPECT_THAT(CheckModelName("--model-name", name),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(StartsWith("--model-name \"" + name + "\""), HasSubstr("1 to 128"))));
  }
}

}  // namespace
}  // namespace millrace
