#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "services/cli/fault_schedule.h"
#include "services/cli/job_status_client.h"
#include "services/cli/service_process.h"

namespace millrace {

// Does a schedule of faults to a running `millrace train`, from outside: by signals to its processes, and workers of
// its own that come and go. One fault after the other: the next one waits until a new step has been made.
//
// Not thread-safe; every call on one thread, which outlives the guests.
class FaultInjector {
 public:
  struct Result {
    Fault fault;
    uint64_t version = 0;  // steps applied when it happened
    std::optional<absl::Duration>
        until_step;  // from the fault to the first step beyond `version`; none if none was seen
  };

  // `train` runs with its results in `out`; guests write their logs there. All must outlive the injector.
  FaultInjector(const Clock& clock, pid_t train, std::filesystem::path out, std::filesystem::path bin_dir,
                std::vector<Fault> schedule);
  ~FaultInjector();

  // Looks after everything once; call every few milliseconds. An error if a guest cannot be started.
  absl::Status Poll();

  // What was done so far, in order.
  const std::vector<Result>& results() const { return results_; }

 private:
  std::optional<uint64_t> Version();
  bool Inject(const Fault& fault, absl::Time now);
  absl::Status Join(const Fault& fault);

  const Clock& clock_;
  const pid_t train_;
  const std::filesystem::path out_;
  const std::filesystem::path bin_dir_;
  const std::vector<Fault> schedule_;
  std::vector<Result> results_;
  absl::Time injected_;                  // the last of results_
  std::map<pid_t, absl::Time> stopped_;  // and when each goes on
  std::map<std::string, std::unique_ptr<ServiceProcess>> guests_;
  JobStatusClient status_;
};

// The child of `parent` that is `part` of its cluster; nullopt while there is none.
std::optional<pid_t> FindPart(pid_t parent, const std::string& part);

}  // namespace millrace
