#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "millrace/v1/coordinator.pb.h"
#include "nlohmann/json.hpp"
#include "services/cli/service_process.h"

namespace millrace {

// For a whole run, which takes many times as long under a sanitizer.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr absl::Duration kRunTimeout = absl::Minutes(12);
#else
inline constexpr absl::Duration kRunTimeout = absl::Minutes(4);
#endif

// A real program of the project, as built, run with the given arguments: `Program("millrace", {"train", ...})`.
// What it writes to stderr is kept; it is killed with the object. Not thread-safe.
class Program {
 public:
  Program(const std::string& name, std::vector<std::string> arguments, const std::filesystem::path& stderr_file);

  // The exit code (128 + signal if one killed it). Throws if it still runs after `timeout`.
  int Wait(absl::Duration timeout = kRunTimeout);
  bool Runs() { return process_->Poll(); }
  pid_t pid() const { return process_->pid(); }
  void Signal(int signal_number) { process_->Signal(signal_number); }
  // Until stderr holds `text`. Throws if the program ends first or takes minutes.
  void WaitForError(const std::string& text);
  // Everything that this and earlier programs wrote to `stderr_file`.
  std::string Errors() const;
  // Where it listens; waits until it says so. Throws if it ends first or takes too long.
  const AnnouncedAddresses& WaitForAddresses();

  // The running children whose program is called `name` ("millrace-ps"), oldest first.
  std::vector<pid_t> Children(const std::string& name) const;

 private:
  const std::filesystem::path stderr_file_;
  std::unique_ptr<ServiceProcess> process_;
};

// A run of `millrace train`, with its results in `out` and beside it.
class ClusterProcess {
 public:
  // `flags` are added to --data-dir, --out and --json, and win over them.
  ClusterProcess(const std::filesystem::path& out, const std::filesystem::path& data_dir,
                 std::vector<std::string> flags = {});

  Program& program() { return program_; }
  int Wait() { return program_.Wait(); }

  // What `--json` wrote; the run must have succeeded.
  nlohmann::json Result() const;

  // The coordinator's status; nothing while it cannot be had.
  std::optional<v1::JobStatus> Status() const;
  // Waits until `condition` holds of the status, and returns that status. Throws if the run ends first or takes
  // minutes.
  v1::JobStatus WaitUntil(const std::function<bool(const v1::JobStatus&)>& condition);

 private:
  const std::filesystem::path out_;
  Program program_;
};

// Waits for the run's end, which must be a success, and returns its result.
nlohmann::json Finish(ClusterProcess& run);
inline nlohmann::json Finish(ClusterProcess&& run) { return Finish(run); }

// SHA-256 of the weights of the newest version of model "mnist" in a repository; empty if there is none.
std::string NewestDigest(const std::filesystem::path& repository);

}  // namespace millrace
