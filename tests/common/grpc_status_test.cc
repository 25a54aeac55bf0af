#include "common/grpc_status.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

TEST(GrpcStatusTest, EveryCodeAndItsMessageSurviveTheRoundTrip) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "slot 5 is leased");
    const grpc::Status wire = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(wire), status);
    EXPECT_EQ(GrpcCodeName(wire.error_code()), absl::StatusCodeToString(status.code()));
  }
}

TEST(GrpcStatusTest, ALongMessageIsCut) {
  EXPECT_EQ(ToGrpcStatus(absl::NotFoundError(std::string(2048, 'x'))).error_message(), std::string(2048, 'x'));
  EXPECT_EQ(ToGrpcStatus(absl::NotFoundError(std::string(2049, 'x'))).error_message(), std::string(2045, 'x') + "...");
}

TEST(GrpcStatusTest, AnUnknownCodeBecomesUnknown) {
  const grpc::Status odd(static_cast<grpc::StatusCode>(20), "odd");
  EXPECT_THAT(FromGrpcStatus(odd), StatusIs(absl::StatusCode::kUnknown, std::string("odd")));
  EXPECT_EQ(GrpcCodeName(odd.error_code()), "UNKNOWN");
}

}  // namespace
}  // namespace millrace
