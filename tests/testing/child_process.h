#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

// A program run beside the test, its stdout and stderr in pipes. Killed and reaped at the latest with the object.
// Starts by posix_spawn with an empty signal mask. Not thread-safe.
class ChildProcess {
 public:
  // `arguments[0]` is the program's path. Throws std::system_error if it cannot be started.
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }

  // The next line of stdout, without its newline; empty at its end or after `timeout`.
  std::string ReadLine(absl::Duration timeout = absl::Seconds(20));

  void Kill(int signal);

  // The exit code, or minus the number of the signal that ended it. After `timeout` the child is killed.
  int Wait(absl::Duration timeout = absl::Seconds(20));

  // After Wait: what is left of stdout, and all of stderr.
  const std::string& rest_of_stdout() const { return stdout_.text; }
  const std::string& all_of_stderr() const { return stderr_.text; }

 private:
  struct Pipe {
    int fd = -1;
    std::string text;
  };

  // Moves what the pipes hold to the texts, waiting at most until `deadline` for more. False when both have ended.
  bool Pump(absl::Time deadline);

  pid_t pid_ = -1;
  bool reaped_ = false;
  int result_ = 0;
  Pipe stdout_;
  Pipe stderr_;
};

}  // namespace millrace
