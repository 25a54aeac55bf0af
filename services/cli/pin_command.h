// Which version serves, whatever is pushed: `millrace pin` and `millrace rollback`.
#pragma once

#include <cstdint>
#include <string>

#include "services/cli/target.h"

namespace millrace {

struct PinOptions {
  Target target = {};
  std::string model{};       // empty: the service's default
  uint64_t version = 0;      // to pin
  bool newest = false;       // instead: end the pin
  std::string token_file{};  // of the service's bearer token; empty: none is shown
  double timeout_seconds = 60;
};

void AddPinFlags(CLI::App& app, PinOptions& options);
void AddRollbackFlags(CLI::App& app, PinOptions& options);

// Ask for the change, wait until the service has made it, and say so. Return the exit code: kExitFailure if the service
// refuses the call or the version, or does not get there in time.
int RunPin(const PinOptions& options);
int RunRollback(const PinOptions& options);

}  // namespace millrace
