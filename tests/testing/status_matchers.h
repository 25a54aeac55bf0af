#pragma once

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"

namespace millrace {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

// EXPECT_THAT(Save(path), IsOk());  also for StatusOr.
MATCHER(IsOk, negation ? "is not OK" : "is OK") {
  *result_listener << StatusOf(arg);
  return StatusOf(arg).ok();
}

// EXPECT_THAT(Load(path), StatusIs(absl::StatusCode::kNotFound, HasSubstr("model.pt")));
MATCHER_P(StatusIs, code, "has status code " + absl::StatusCodeToString(code)) {
  *result_listener << StatusOf(arg);
  return StatusOf(arg).code() == code;
}
MATCHER_P2(StatusIs, code, message, "has status code " + absl::StatusCodeToString(code) + " and such a message") {
  *result_listener << StatusOf(arg);
  return StatusOf(arg).code() == code &&
         ::testing::SafeMatcherCast<const std::string&>(message).Matches(std::string(StatusOf(arg).message()));
}

}  // namespace millrace
