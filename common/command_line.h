#pragma once

#include <optional>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace millrace {

// The exit codes of every program of the project.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;            // a port in use, a full disk, a peer that failed
inline constexpr int kExitUsage = 64;             // EX_USAGE: unknown or malformed flags
inline constexpr int kExitBadConfiguration = 78;  // EX_CONFIG: missing data, unreadable file, impossible job

// Parses the command line into what `app`'s options are bound to. Returns nothing if the program should go on,
// otherwise the code to exit with: kExitOk after --help, --version and the like; that of a CLI::RuntimeError which an
// option's callback throws once it has done the program's work; kExitUsage, or kExitBadConfiguration for a file, after
// one line on stderr that names the fault.
//
// Every option --foo-bar, of subcommands too, can also come from the environment as MILLRACE_FOO_BAR, or from a file
// (common/config_file.h); the command line wins. An empty variable counts as unset. --help says so.
std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv);

// kExitOk for OK; kExitBadConfiguration where what the user gave us cannot be right (INVALID_ARGUMENT, NOT_FOUND,
// PERMISSION_DENIED, UNAUTHENTICATED, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, DATA_LOSS); kExitFailure for
// all else.
int ExitCodeFor(const absl::Status& status);

}  // namespace millrace
