#include "services/cli/restart_policy.h"

#include <algorithm>

namespace millrace {

std::optional<absl::Time> RestartPolicy::OnDeath(absl::Time now) {
  if (now - started_ >= options_.early) {
    early_deaths_ = 0;
    return now + options_.initial_delay;
  }
  ++early_deaths_;
  if (early_deaths_ >= options_.early_deaths_max) return std::nullopt;
  absl::Duration delay = options_.initial_delay;
  for (int death = 1; death < early_deaths_ && delay < options_.delay_max; ++death) delay *= 2;
  return now + std::min(delay, options_.delay_max);
}

}  // namespace millrace
