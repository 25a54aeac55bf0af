#pragma once

#include <string>

#include "services/cli/target.h"

namespace millrace {

struct StatusOptions {
  Target target = {};
  std::string run_token_file = {};  // of the run that the target belongs to; empty: none is shown
};

void AddStatusFlags(CLI::App& app, StatusOptions& options);

// Prints what every part behind the target does and waits for. Returns the exit code.
int RunStatus(const StatusOptions& options);

}  // namespace millrace
