// What trying a user's module shows: whether it can be trained at all, and which of its buffers training changes.
// Internal to common/model: includes LibTorch.
#pragma once

#include <torch/script.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

struct ScriptFindings {
  // Float buffers that the forward pass changes in training mode, in the order of the module's attributes.
  std::vector<std::pair<std::string, at::Tensor>> statistics;
  uint32_t slot_samples_min = 1;  // 2 if the statistics of a single sample cannot be computed
};

// Runs `module` (network.h), the wrapper around the user's `body`, on a few images in training mode; afterwards all
// values are as before. INVALID_ARGUMENT if it does not take the images, gives something else than the loss needs, or
// keeps state that cannot be added up over slots: a statistic that is not float32, an attribute assigned anew instead
// of changed in place, or a counter that the result depends on. May throw what LibTorch throws.
absl::StatusOr<ScriptFindings> ProbeScript(const v1::NetworkSpec& spec, torch::jit::Module& module,
                                           const torch::jit::Module& body);

}  // namespace millrace
