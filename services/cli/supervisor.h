#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/shutdown.h"
#include "services/cli/restart_policy.h"
#include "services/cli/service_process.h"

namespace millrace {

// Keeps the processes of a local cluster alive. A part that dies is started again by its RestartPolicy, if it may be
// replaced at all; the death of any other part is an error, and so is the end of a part that says by its exit code that
// its configuration is at fault (a damaged dataset, say): trying again would not help. A part that has been well once
// and cannot be replaced any more is given up, and nothing else, while another one of its group is not.
//
// Not thread-safe, and every call must come from one thread that outlives the children: they ask the kernel to be
// killed when the thread that started them ends (PR_SET_PDEATHSIG), so that none survives a parent that was killed.
class Supervisor {
 public:
  enum class Replace {
    kNever,
    kOnceReady,  // after it has announced itself once; failing at the first start has a lasting cause (a port in use)
    kAlways,
  };

  struct Part {
    std::string name;                  // "worker-0"
    std::vector<std::string> command;  // the program's path and its flags
    std::string log_file;
    Replace replace = Replace::kNever;
    std::vector<std::string> flags_when_replaced = {};  // more flags, once it has announced itself
    std::string group = {};  // parts of which each can do the work of the others; empty: of none
  };

  // Told what happened to a part, in one line. Called from within Poll().
  using Notice = std::function<void(const std::string&)>;

  // Both must outlive the supervisor.
  Supervisor(const Clock& clock, ShutdownSignals& signals, Notice notice);
  // Kills what still runs.
  ~Supervisor();

  // Names are unique. An error if the program cannot be run at all.
  absl::Status Start(Part part);

  // Waits at most `timeout` for SIGINT or SIGTERM, then looks after the parts once: takes announcements, reaps the
  // dead, restarts those that are due. CANCELLED: a signal came. Any other error: a part ended that cannot be replaced;
  // the message names it, how it ended and the last line of its log. FAILED_PRECONDITION if the part blamed its
  // configuration, else ABORTED.
  absl::Status Poll(absl::Duration timeout);

  // Where a part that runs can be reached; null before its announcement.
  const AnnouncedAddresses* announced(const std::string& name) const;
  std::vector<std::string> names() const;

  // SIGTERM to the parts named, SIGKILL to what is left after `grace` or at a further SIGINT or SIGTERM, and no
  // restarts. Returns when all have ended.
  void Stop(const std::vector<std::string>& names, absl::Duration grace);

 private:
  struct Running {
    Part part;
    RestartPolicy policy;
    std::unique_ptr<ServiceProcess> process;  // null while it waits for its restart, and when it is given up
    absl::Time restart_at;                    // infinite if it is given up
    bool was_ready = false;                   // announced itself in any of its lives
  };

  absl::Status Launch(Running& running);
  absl::Status OnDeath(Running& running);
  // What becomes of a death that cannot be made good.
  absl::Status GiveUp(Running& running, const absl::Status& why);

  const Clock& clock_;
  ShutdownSignals& signals_;
  const Notice notice_;
  std::map<std::string, Running> parts_;
};

}  // namespace millrace
