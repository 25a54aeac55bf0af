#pragma once

#include <string>

#include "services/cli/target.h"

namespace millrace {

struct StatusOptions {
  Target target = {};
};

void AddStatusFlags(CLI::App& app, StatusOptions& options);

// Prints what every part behind the target does and waits for. Returns the exit code.
int RunStatus(const StatusOptions& options);

}  // namespace millrace
