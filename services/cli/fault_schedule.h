#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

// One thing that is done to a running cluster.
struct Fault {
  enum class Kind {
    kKill,     // SIGKILL
    kStop,     // SIGSTOP, and SIGCONT after `pause`
    kRestart,  // SIGTERM: it ends in an orderly way and is started again
    kJoin,     // one more worker, `part`, comes
    kLeave,    // the guest `part` leaves in an orderly way
  };
  Kind kind = Kind::kKill;
  std::string part = {};  // "data", "data-1", "parameter-server-1", "worker-0", "guest-1"
  uint64_t step = 0;      // when so many steps are applied
  absl::Duration pause = {};

  bool operator==(const Fault&) const = default;
};

struct FaultScheduleOptions {
  uint64_t seed = 0;
  uint32_t faults = 12;
  uint32_t shards = 1;         // >= 1
  uint32_t data_replicas = 1;  // >= 1
  uint32_t workers = 2;        // >= 1; besides them up to two guests come and go
  uint64_t steps = 0;          // of the whole job; >= 1
};

// A pure function of the options: which faults happen when, in order of `step`. From 2 + `shards` faults on, every kind
// of process is killed; from three times as many and two on, every kind of fault happens to each.
std::vector<Fault> MakeFaultSchedule(const FaultScheduleOptions& options);

// "step 120: SIGSTOP worker-1 for 0.8 s"
std::string DescribeFault(const Fault& fault);
// "SIGSTOP"
std::string FaultName(Fault::Kind kind);

}  // namespace millrace
