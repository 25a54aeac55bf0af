#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/cli/target.h"
#include "services/cli/version_choice.h"

namespace millrace {

struct ExplainCommandOptions {
  Target target = {};
  VersionChoice choice{};
  std::string method = "integrated-gradients";
  std::optional<uint32_t> target_class{};  // unset: the most probable one
  uint32_t steps = 64;
  uint32_t patch = 5;
  std::string out_dir = ".";
  std::vector<std::string> files{};  // PNG or JPEG
  double timeout_seconds = 30;
};

void AddExplainFlags(CLI::App& app, ExplainCommandOptions& options);

// For each file a picture <out_dir>/<stem>.explained.png and one line on stdout; one on stderr for a file that failed,
// which does not stop the others. Returns the exit code: kExitFailure if any failed.
int RunExplain(const ExplainCommandOptions& options);

}  // namespace millrace
