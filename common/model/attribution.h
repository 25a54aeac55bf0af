// The attribution methods of explanation.h over any differentiable network.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/explanation.h"
#include "torch/types.h"

namespace millrace {

// Rows of pixels, float32 [rows, channels, height, width] of 0 to 255, to [rows, classes] probabilities or [rows, 1]
// errors. Differentiable; rows do not depend on each other.
using ScoreFunction = std::function<at::Tensor(const at::Tensor& pixels)>;

// One explanation per row of `pixels`. INVALID_ARGUMENT for options out of range or a target that is no class; what
// options.go_on says. Throws what LibTorch throws. No state; any thread.
absl::StatusOr<std::vector<Explanation>> Attribute(const ScoreFunction& scores, const at::Tensor& pixels,
                                                   const ExplainOptions& options);

}  // namespace millrace
