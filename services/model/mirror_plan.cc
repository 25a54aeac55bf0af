#include "services/model/mirror_plan.h"

#include <algorithm>

namespace millrace {

MirrorPlan PlanMirror(std::span<const MirroredVersion> source, std::span<const MirroredVersion> local,
                      const std::map<uint64_t, absl::Time>& retry_at, absl::Time now) {
  MirrorPlan plan;
  bool complete = !source.empty();
  for (const MirroredVersion& wanted : source) {
    if (std::ranges::find(local, wanted) != local.end()) continue;
    complete = false;
    const auto wait = retry_at.find(wanted.version);
    if (plan.fetch.has_value() || (wait != retry_at.end() && now < wait->second)) continue;
    plan.fetch = wanted;
  }
  if (!complete) return plan;
  for (const MirroredVersion& present : local) {
    if (std::ranges::find(source, present) == source.end()) plan.remove.push_back(present.version);
  }
  return plan;
}

}  // namespace millrace
