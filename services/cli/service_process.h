#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// What a service announces on stdout once it can be reached: `LISTENING grpc=ADDRESS http=ADDRESS`.
struct AnnouncedAddresses {
  std::string grpc;  // empty: no such listener
  std::string http;
};
std::optional<AnnouncedAddresses> ParseAnnouncement(absl::string_view line);

// A service run as a child process: started with posix_spawn (never fork: gRPC has threads), in a process group of its
// own (a Ctrl-C in the terminal reaches only the parent, which then ends its children in order), stdin from /dev/null,
// stdout to a pipe that is read for the announcement, stderr appended to a log file, every other descriptor closed, and
// without the MILLRACE_* variables, which were meant for the parent's flags.
//
// Not thread-safe. The child is killed with the object.
class ServiceProcess {
 public:
  // `command[0]` is the path of the program. NOT_FOUND or PERMISSION_DENIED if it cannot be run.
  static absl::StatusOr<std::unique_ptr<ServiceProcess>> Start(const std::vector<std::string>& command,
                                                               const std::string& log_file);
  ~ServiceProcess();
  ServiceProcess(const ServiceProcess&) = delete;
  ServiceProcess& operator=(const ServiceProcess&) = delete;

  pid_t pid() const { return pid_; }

  // Takes what has arrived on stdout and whether the child has ended; never blocks. True while it runs.
  bool Poll();

  const std::optional<AnnouncedAddresses>& announced() const { return announced_; }
  // After Poll() has returned false: the exit code, or 128 + the signal that killed it.
  int exit_code() const;
  // "exited with code 78" or "was killed by signal 9 (Killed)"
  std::string DescribeEnd() const;

  // Nothing happens if it has ended.
  void Signal(int signal_number);

 private:
  ServiceProcess(pid_t pid, int output) : pid_(pid), output_(output) {}
  void ReadOutput();

  const pid_t pid_;
  int output_;  // read end of its stdout; -1 once closed
  std::string partial_line_;
  std::optional<AnnouncedAddresses> announced_;
  std::optional<int> wait_status_;
};

// SIGTERM, and up to 15 s for it to end its own children, if it is a `millrace train`.
void StopGently(ServiceProcess& process);

// `given`, or where this program lies if that is empty.
std::filesystem::path ProgramDirectory(const std::string& given);

// The last `lines` lines of a log file, without the final newline; empty if it cannot be read.
std::string LastLines(const std::string& file, int lines);

}  // namespace millrace
