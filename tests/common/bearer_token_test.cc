#include "common/bearer_token.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class BearerTokenTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) { std::ofstream(file_) << text; }

  const TemporaryDirectory directory_;
  const std::string file_ = directory_ / "token";
  const TokenCheck check_{file_};
};

TEST_F(BearerTokenTest, OnlyTheTokenInTheFileIsLetIn) {
  Write("  a-token-of-some-length\n");
  EXPECT_THAT(check_.Check("Bearer a-token-of-some-length"), IsOk());
  for (const char* none : {"", "a-token-of-some-length", "Basic a-token-of-some-length", "bearer"}) {
    EXPECT_THAT(check_.Check(none), StatusIs(absl::StatusCode::kUnauthenticated)) << none;
  }
  for (const char* other : {"Bearer ", "Bearer a-token-of-some-lengtH", "Bearer a-token-of-some-length2"}) {
    EXPECT_THAT(check_.Check(other), StatusIs(absl::StatusCode::kPermissionDenied)) << other;
  }
}

TEST_F(BearerTokenTest, ANewTokenCountsAtOnce) {
  Write("a-token-of-some-length");
  Write("another-token-of-it");
  EXPECT_THAT(check_.Check("Bearer a-token-of-some-length"), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(check_.Check("Bearer another-token-of-it"), IsOk());
}

TEST_F(BearerTokenTest, WhileATokenIsChangedBothAreLetInAndTheFirstIsShown) {
  Write("the-new-token-of-it\n\n the-old-token-of-it \r\n");
  EXPECT_EQ(*ReadToken(file_), "the-new-token-of-it");
  EXPECT_THAT(check_.Check("Bearer the-new-token-of-it"), IsOk());
  EXPECT_THAT(check_.Check("Bearer the-old-token-of-it"), IsOk());
  EXPECT_THAT(check_.Check("Bearer the-new-token-of-it\n\n the-old-token-of-it"),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(BearerTokenTest, AFileWithoutATokenLetsNobodyInAndNoMessageTellsIt) {
  EXPECT_THAT(check_.Check("Bearer x"), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(file_)));
  for (const char* bad : {"", "\n", "tooshort", "two tokens of some length", "a-token-of-some-length\ntooshort"}) {
    Write(bad);
    EXPECT_THAT(
        check_.Check(std::string("Bearer ") + bad),
        StatusIs(absl::StatusCode::kUnavailable, AllOf(HasSubstr("16 characters"), Not(HasSubstr("tooshort")))));
  }
}

}  // namespace
}  // namespace millrace
