#pragma once

#include <string>

namespace CLI {
class App;
}

namespace millrace {

struct StatusOptions {
  std::string target = "127.0.0.1:8500";
};

void AddStatusFlags(CLI::App& app, StatusOptions& options);

// Prints what every part behind the target does and waits for. Returns the exit code.
int RunStatus(const StatusOptions& options);

}  // namespace millrace
