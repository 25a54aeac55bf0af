#pragma once

#include "absl/status/status.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// Holds an optimizer's numbers to their limits. INVALID_ARGUMENT names the field, its value and the limit:
// "optimizer.beta1 1 must be at least 0 and below 1". Fields that the kind does not use are not looked at. Pure.
absl::Status CheckOptimizerSpec(const v1::OptimizerSpec& spec);

}  // namespace millrace
