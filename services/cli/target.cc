#include "services/cli/target.h"

#include <cstdio>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "common/address.h"
#include "common/command_line.h"

namespace millrace {

void AddTargetFlags(CLI::App& app, Target& target, const std::string& help) {
  app.add_option("--target", target.address, help)->capture_default_str();
  AddTlsFlags(app, target.tls);
}

std::optional<int> RefuseTarget(const Target& target) {
  if (const absl::Status address = ParseAddress(target.address).status(); !address.ok()) {
    std::fprintf(stderr, "millrace: --target: %s\n", std::string(address.message()).c_str());
    return kExitUsage;
  }
  const absl::Status files = CheckTlsFiles(target.tls);
  if (files.ok()) return std::nullopt;
  std::fprintf(stderr, "millrace: %s\n", std::string(files.message()).c_str());
  return ExitCodeFor(files);
}

}  // namespace millrace
