#include "services/model/mirror_plan.h"

#include <algorithm>

namespace millrace {

MirrorPlan PlanMirror(std::span<const MirroredVersion> source, std::span<const MirroredVersion> local,
                      std::span<const uint64_t> pins, const std::map<uint64_t, absl::Time>& retry_at, absl::Time now) {
  const auto pinned = [&](uint64_t version) { return std::ranges::find(pins, version) != pins.end(); };
  MirrorPlan plan;
  bool complete = !source.empty();
  for (const MirroredVersion& wanted : source) {
    if (std::ranges::find(local, wanted) != local.end()) continue;
    if (!pinned(wanted.version)) complete = false;  // one that cannot be fetched would be wanted for ever
    const auto wait = retry_at.find(wanted.version);
    if (wait != retry_at.end() && now < wait->second) continue;
    if (!plan.fetch || (pinned(wanted.version) && !pinned(plan.fetch->version))) plan.fetch = wanted;
  }
  if (!complete) return plan;
  for (const MirroredVersion& present : local) {
    const bool wanted = std::ranges::find(source, present) != source.end() || pinned(present.version);
    if (!wanted) plan.remove.push_back(present.version);
  }
  return plan;
}

}  // namespace millrace
