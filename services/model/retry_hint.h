// A status that says when another try may succeed.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace millrace {

// Whole milliseconds, rounded up.
void SetRetryAfter(absl::Status& status, absl::Duration after);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace millrace
