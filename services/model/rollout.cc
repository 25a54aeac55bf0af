#include "services/model/rollout.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/hashing.h"

namespace millrace {
namespace {

// In [0, 1), evenly (the finalizer of SplitMix64). The version has its part in it so that it is not always the same
// clients that try what is new.
double PlaceOf(uint64_t checksum, uint64_t version) {
  uint64_t hash = checksum + version * 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((hash ^ (hash >> 31)) >> 11) * 0x1p-53;
}

}  // namespace

absl::Status CheckOptions(const RolloutOptions& options) {
  if (!(options.canary_fraction > 0 && options.canary_fraction <= 1)) {
    return absl::InvalidArgumentError("--canary-fraction must be over 0 and at most 1");
  }
  return CheckLimits(options.limits);
}

Rollout::Rollout(std::shared_ptr<const LoadedVersion> candidate, const RolloutOptions& options,
                 std::shared_ptr<ShadowRunner> runner, std::shared_ptr<ModelMetrics> metrics,
                 std::function<void()> settle)
    : candidate_(std::move(candidate)),
      options_(options),
      runner_(std::move(runner)),
      metrics_(std::move(metrics)),
      rows_(metrics_->RowsOfRollouts(candidate_->info().model)),
      settle_(std::move(settle)),
      judge_(options.limits) {}

bool Rollout::Concerns(const LoadedVersion& stable, const InferenceRequest& request) const {
  return !over_.load(std::memory_order_relaxed) && CheckRequest(stable.info(), request).ok();
}

bool Rollout::IsCanarys(const InferenceRequest& request) const {
  if (options_.mode != RolloutOptions::Mode::kCanary) return false;
  const uint64_t checksum = request.key.empty() ? Checksum64(std::as_bytes(request.input)) : Checksum64(request.key);
  return PlaceOf(checksum, candidate_->info().version) < options_.canary_fraction;
}

std::shared_ptr<const LoadedVersion> Rollout::Choose(std::shared_ptr<const LoadedVersion> stable,
                                                     const InferenceRequest& request) const {
  return Concerns(*stable, request) && IsCanarys(request) ? candidate_ : stable;
}

std::shared_ptr<const LoadedVersion> Rollout::Route(std::shared_ptr<const LoadedVersion> stable,
                                                    const InferenceRequest& request) {
  if (!Concerns(*stable, request)) return stable;
  const bool canarys = IsCanarys(request);
  if (canarys || options_.mode == RolloutOptions::Mode::kShadow) Shadow(stable, request);
  return canarys ? candidate_ : stable;
}

void Rollout::Shadow(const std::shared_ptr<const LoadedVersion>& stable, const InferenceRequest& request) {
  const bool image = request.kind == InferenceRequest::Kind::kImage;
  const uint32_t rows = image ? 1 : std::min(request.rows, ShadowRunner::kRowsMax);
  const uint64_t bytes = RowBytes(stable->info(), request) * rows;
  if (bytes > ShadowRunner::kBytesMax || !runner_->has_room()) return rows_.dropped->Increment(rows);
  ShadowJob job{.stable = stable,
                .candidate = candidate_,
                .kind = request.kind,
                .rows = rows,
                .deterministic = request.deterministic,
                .compared = [self = shared_from_this()](const Comparison& comparison) { self->Add(comparison); }};
  const std::span<const uint8_t> input = request.input.first(bytes);
  if (request.kind == InferenceRequest::Kind::kFloats) {
    const auto* begin = reinterpret_cast<const float*>(input.data());
    job.floats.assign(begin, begin + bytes / sizeof(float));
  } else {
    job.bytes.assign(input.begin(), input.end());
  }
  if (!runner_->Offer(std::move(job))) rows_.dropped->Increment(rows);
}

void Rollout::Add(const Comparison& comparison) {
  {
    MutexLock lock(&mutex_);
    if (judge_.verdict()) return;
    rows_.agree->Increment(static_cast<double>(comparison.agree));
    rows_.differ->Increment(static_cast<double>(comparison.rows - comparison.agree));
    rows_.failed->Increment(static_cast<double>(comparison.failed));
    if (!judge_.Add(comparison)) return;
    over_ = true;
  }
  settle_();
}

std::optional<RolloutVerdict> Rollout::verdict() const {
  MutexLock lock(&mutex_);
  return judge_.verdict();
}

std::string Rollout::Progress() const {
  MutexLock lock(&mutex_);
  const Comparison& total = judge_.total();
  return absl::StrCat(options_.mode == RolloutOptions::Mode::kCanary
                          ? absl::StrFormat("canary of %g %% of the requests: ", 100 * options_.canary_fraction)
                          : "shadow of the requests: ",
                      total.rows, " of ", options_.limits.rows, " rows compared",
                      total.rows > 0 ? absl::StrFormat(", %.2f %% agree", 100 * total.agreement()) : "");
}

}  // namespace millrace
