// Flags from a file.
#pragma once

#include <optional>

namespace CLI {
class App;
}

namespace millrace {

// Adds --config, --print-config and --validate-config to `app`, whose other options and subcommands must be there.
//
// The file of --config is a YAML map with the flags of the command that it is given to, without their dashes:
//   batch-size: 256
//   resume: true
//   data: [10.0.0.1:8600, 10.0.0.2:8600]    # a flag that takes several values
// The command line wins over the environment, which wins over the file. Faults are thrown as CLI::ConfigError and
// CLI::FileError while `app` parses, and name the file and the key.
void AddConfigFlags(CLI::App& app);

// After a successful parse: kExitOk if --print-config or --validate-config was given, the former having printed the
// flags that are set, wherever that was, as a file for --config, and the defaults of the others as comments. Nothing if
// the program should go on.
std::optional<int> AnswerConfigFlags(const CLI::App& app);

}  // namespace millrace
