#include "services/model/version_policy.h"

#include <algorithm>
#include <tuple>

namespace millrace {
namespace {

constexpr absl::Duration kRetryDelayMax = absl::Minutes(1);

bool MayTry(const ModelState& model, const AvailableVersion& version, absl::Time now) {
  const auto failed = model.failed.find(version.version);
  return failed == model.failed.end() || failed->second.identity != version.identity ||
         failed->second.retry_at <= now || (failed->second.by_comparison && model.pinned == version.version);
}

const AvailableVersion* BestCandidate(const ModelState& model, absl::Time now) {
  if (model.unloaded) return nullptr;
  for (auto version = model.available.rbegin(); version != model.available.rend(); ++version) {
    const bool again = model.reload && version->version == model.serving;
    const bool wanted = model.pinned != 0 ? version->version == model.pinned && model.pinned != model.serving
                                          : version->version > std::max(model.serving, model.candidate);
    if ((wanted || (again && (model.pinned == 0 || model.pinned == model.serving))) && MayTry(model, *version, now)) {
      return &*version;
    }
  }
  return nullptr;
}

const AvailableVersion* BestStandby(const ModelState& model, absl::Time now) {
  if (model.unloaded || model.standby.size() >= model.standby_wanted) return nullptr;
  for (auto version = model.available.rbegin(); version != model.available.rend(); ++version) {
    const bool loaded = std::ranges::find(model.standby, version->version) != model.standby.end();
    if (version->version < model.serving && !loaded && MayTry(model, *version, now)) return &*version;
  }
  return nullptr;
}

}  // namespace

std::optional<LoadAction> NextLoad(std::span<const ModelState> models, absl::Time now) {
  const ModelState* chosen = nullptr;
  const AvailableVersion* candidate = nullptr;
  const auto rank = [](const ModelState& model) { return std::make_tuple(model.serving != 0, model.last_turn); };
  for (const ModelState& model : models) {
    const AvailableVersion* best = BestCandidate(model, now);
    if (best == nullptr || (chosen != nullptr && rank(*chosen) <= rank(model))) continue;
    chosen = &model;
    candidate = best;
  }
  if (chosen == nullptr) return std::nullopt;
  return LoadAction{.model = chosen->model, .version = *candidate};
}

std::optional<LoadAction> NextStandby(std::span<const ModelState> models, absl::Time now) {
  for (const ModelState& model : models) {
    const AvailableVersion* version = BestStandby(model, now);
    if (version != nullptr) return LoadAction{.model = model.model, .version = *version, .standby = true};
  }
  return std::nullopt;
}

absl::Duration RetryDelay(int attempts) {
  const int doublings = std::clamp(attempts - 1, 0, 10);
  return std::min(absl::Seconds(1) * (1 << doublings), kRetryDelayMax);
}

}  // namespace millrace
