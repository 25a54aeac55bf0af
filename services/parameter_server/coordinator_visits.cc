// What was trained, counted while it happens, against what should have been.
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "services/parameter_server/coordinator.h"

namespace millrace {

void Coordinator::CountVisits(const LedgerActions::CompletedRound& round) {
  for (const v1::VisitCheck& check : visits_.StepCompleted(plan_, round.id.version, round.sums)) {
    if (options_.ask_visits != nullptr) options_.ask_visits(plan_, check);
  }
}

void Coordinator::VisitsExpected(const v1::VisitCheck& check) {
  MutexLock lock(&mutex_);
  if (visits_.Answered(check)) {
    LogDebug("every sample was trained once", {{"epoch", check.epoch()},
                                               {"begin", check.begin()},
                                               {"end", check.end()},
                                               {"samples", check.samples()},
                                               {"visits", absl::StrCat(absl::Hex(check.visits(), absl::kZeroPad16))}});
    return;
  }
  LogError("VISITS DIFFER: not every sample was trained exactly once",
           {{"epoch", check.epoch()},
            {"begin", check.begin()},
            {"end", check.end()},
            {"samples", check.samples()},
            {"expected_samples", check.expected_samples()},
            {"visits", absl::StrCat(absl::Hex(check.visits(), absl::kZeroPad16))},
            {"expected_visits", absl::StrCat(absl::Hex(check.expected_visits(), absl::kZeroPad16))}});
}

}  // namespace millrace
