#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "millrace/v1/job.pb.h"

namespace CLI {
class App;
}

namespace millrace {

// The flags that say how far gradients may be behind the weights they change. Unset ones leave the job as it is.
struct AsynchronyFlags {
  std::optional<std::string> staleness;        // a number or "unbounded"
  std::optional<std::string> stale_gradients;  // as-they-are, smaller-steps, compensated
  std::optional<double> compensation;
};

// Declares the flags on `app` in `group`, bound to `flags`, which must outlive the parsing.
void AddAsynchronyFlags(CLI::App& app, AsynchronyFlags& flags, const std::string& group);

// INVALID_ARGUMENT names the flag that does not fit.
absl::Status ApplyAsynchronyFlags(const AsynchronyFlags& flags, v1::JobSpec& spec);

// What asynchrony makes of batch size and learning rate, in one line; empty for a synchronous job:
// "asynchronous: gradients up to 4 steps old, so up to 640 samples under way at once; learning rate down to 0.0002"
std::string DescribeAsynchrony(const v1::JobSpec& spec);

}  // namespace millrace
