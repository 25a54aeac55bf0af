#include "services/parameter_server/shard.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/schedule.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {

static_assert(kShardAlignment % kNumbersTogether == 0);
namespace {

absl::Status CheckOptions(const v1::JobPlan& plan, ElementRange range, size_t initial_weights) {
  if (range.begin >= range.end || range.end > plan.parameter_count() || range.begin % kShardAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("elements [", range.begin, ", ", range.end, ") are no shard of ",
                                                   plan.parameter_count(), " parameters"));
  }
  if (initial_weights != range.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(initial_weights, " initial weights for a shard of ", range.size(), " elements"));
  }
  if (plan.statistics_count() > plan.parameter_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the plan has ", plan.statistics_count(), " statistics in a vector of ", plan.parameter_count()));
  }
  if (plan.steps_per_epoch() == 0 || plan.spec().batch_size() == 0 || plan.spec().slots() == 0 ||
      plan.dataset().train_count() == 0) {
    return absl::InvalidArgumentError("the plan has no steps, samples, batch size or slots");
  }
  return absl::OkStatus();
}

uint64_t TrainableElements(const v1::JobPlan& plan, ElementRange range) {
  const uint64_t end = std::clamp(plan.parameter_count() - plan.statistics_count(), range.begin, range.end);
  return end - range.begin;
}

// "5-7, 9"
std::string FormatSlots(const std::vector<uint32_t>& slots) {
  std::vector<std::string> runs;
  for (size_t i = 0; i < slots.size();) {
    size_t last = i;
    while (last + 1 < slots.size() && slots[last + 1] == slots[last] + 1) ++last;
    runs.push_back(last == i ? absl::StrCat(slots[i]) : absl::StrCat(slots[i], "-", slots[last]));
    i = last + 1;
  }
  return absl::StrJoin(runs, ", ");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Shard>> Shard::Create(Options options, std::span<const float> initial_weights) {
  const ElementRange range{options.info.begin(), options.info.end()};
  MILLRACE_RETURN_IF_ERROR(CheckOptions(options.plan, range, initial_weights.size()));
  MILLRACE_ASSIGN_OR_RETURN(
      auto optimizer, options.make_optimizer(options.plan.spec().optimizer(), range.size(), options.chunk_elements,
                                             TrainableElements(options.plan, range)));
  return std::unique_ptr<Shard>(new Shard(std::move(options), initial_weights, std::move(optimizer)));
}

Shard::Shard(Options options, std::span<const float> initial_weights, std::unique_ptr<ShardOptimizer> optimizer)
    : options_(std::move(options)),
      metrics_(std::make_unique<ShardMetrics>(options_.metrics, options_.info.shard())),
      version_(options_.plan.start_version()),
      weights_(version_, initial_weights, options_.plan.spec().wire()),
      sums_(initial_weights.size(), options_.chunk_elements, options_.plan.spec().slots(), options_.plan.spec().wire()),
      oldest_step_(version_),
      committed_weights_(options_.plan, range(), options_.files),
      optimizer_(std::move(optimizer)) {
  metrics_->version.Set(static_cast<double>(version_));
}

Shard::~Shard() { CancelNorms(); }

uint64_t Shard::version() const {
  MutexLock lock(&mutex_);
  return version_;
}

WeightsVersion Shard::weights() const {
  MutexLock lock(&mutex_);
  return weights_.current();
}

absl::StatusOr<WeightsVersion> Shard::WeightsAt(uint64_t version) const {
  if (std::optional<WeightsVersion> held = HeldWeights(version)) return *std::move(held);
  return committed_weights_.Read(version);
}

std::optional<WeightsVersion> Shard::HeldWeights(uint64_t version) const {
  MutexLock lock(&mutex_);
  return HeldWeightsLocked(version);
}

std::optional<WeightsVersion> Shard::HeldWeightsLocked(uint64_t version) const {
  if (version == version_) return weights_.current();
  for (const WeightsVersion& previous : previous_) {
    if (previous.version == version) return previous;
  }
  const auto snapshot = snapshots_.find(version);
  if (snapshot != snapshots_.end()) return snapshot->second->weights;
  return std::nullopt;
}

uint64_t Shard::trainable() const { return TrainableElements(plan(), range()); }

absl::Status Shard::CheckFits(const GradientChunkHeader& chunk) const {
  if (chunk.step >= plan().total_steps()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", chunk.step, " is beyond the job's ", plan().total_steps(), " steps"));
  }
  if (chunk.samples != StepSamples(plan(), chunk.step)) {
    return absl::InvalidArgumentError(
        absl::StrCat("step ", chunk.step, " has ", StepSamples(plan(), chunk.step), " samples, not ", chunk.samples));
  }
  return absl::OkStatus();
}

absl::StatusOr<Shard::AddResult> Shard::AddGradient(const GradientChunkView& chunk) {
  const GradientChunkHeader& header = chunk.header;
  MILLRACE_RETURN_IF_ERROR(CheckFits(header));
  metrics_->gradient_bytes.Increment(static_cast<double>(chunk.values.size()));
  const SlotNode node{header.slot_begin, header.slot_end};
  const bool last_of_push = header.offset + SizeOfChunk(header.offset) == range().size();
  AddResult result;
  MutexLock lock(&mutex_);
  MILLRACE_RETURN_IF_ERROR(broken_);
  // At most as far as the newest weights here allow; with unbounded staleness those are all up to a boundary.
  if (WeightsVersionFor(plan(), header.step) > version_ || header.step > oldest_step_ + StepsAhead(plan())) {
    return absl::FailedPreconditionError(
        absl::StrCat("gradient of step ", header.step, " for a shard at version ", version_));
  }
  if (IsAppliedLocked(header.step)) {
    metrics_->duplicate_chunks.Increment();
    result.push_complete = last_of_push;
    return result;
  }
  StepSum& step = sums_.Of(header.step);
  MILLRACE_ASSIGN_OR_RETURN(const bool added, step.sum.Add(node, header.offset, chunk.values));
  if (!added) metrics_->duplicate_chunks.Increment();
  if (last_of_push) {
    if (!step.sum.Holds(node)) {
      return absl::InvalidArgumentError(absl::StrCat("the last chunk of slots [", node.begin, ", ", node.end,
                                                     ") came before others: send them in order of offset"));
    }
    if (added) step.weights_versions.push_back(std::min(header.weights_version, version_));
    result.push_complete = true;
  }
  result.chunk_complete = step.sum.complete(header.offset / options_.chunk_elements);
  return result;
}

bool Shard::IsAppliedLocked(uint64_t step) const { return step < oldest_step_ || applied_ahead_.contains(step); }

absl::Status Shard::Apply() {
  {
    MutexLock lock(&mutex_);
    MILLRACE_RETURN_IF_ERROR(broken_);
    if (applying_) return absl::OkStatus();
    applying_ = true;
  }
  while (const std::optional<Work> work = TakeWork()) {
    switch (work->kind) {
      case Work::kMeasure:
        MeasureChunk(*work);
        break;
      case Work::kAskNorm:
        AskNorm(*work);
        break;
      case Work::kApply:
        MILLRACE_RETURN_IF_ERROR(FinishWork(*work, ApplyChunk(*work)));
        for (const auto& listener : listeners_) listener({work->next.weights, work->elements.end});
        if (work->elements.end == range().size()) TakeSnapshotIfDue();
        break;
    }
  }
  return absl::OkStatus();
}

std::optional<uint64_t> Shard::NextStepLocked() const {
  if (unbounded() && next_chunk_ == 0) {
    // Once begun, a step must be finished before another: so only what is there as a whole is begun.
    for (const auto& [step, sum] : sums_.steps()) {
      if (sum->sum.Holds({0, plan().spec().slots()})) return step;
    }
    return std::nullopt;
  }
  const uint64_t step = next_chunk_ > 0 ? current_step_ : oldest_step_;
  const StepSum* sum = sums_.Find(step);
  if (sum == nullptr || !sum->sum.complete(next_chunk_)) return std::nullopt;
  return step;
}

uint64_t Shard::StalenessLocked(uint64_t step) const {
  if (!unbounded()) return step - WeightsVersionFor(plan(), step);
  const std::vector<uint64_t>& versions = sums_.Find(step)->weights_versions;
  return versions.empty() ? 0 : version_ - *std::min_element(versions.begin(), versions.end());
}

std::optional<Shard::Work> Shard::TakeWork() {
  MutexLock lock(&mutex_);
  if (clips() && !clip_scale_.has_value()) return TakeNormWork();
  const std::optional<uint64_t> step = NextStepLocked();
  if (!step.has_value()) {
    applying_ = false;
    return std::nullopt;
  }
  if (next_chunk_ == 0) {
    current_step_ = *step;
    next_ = weights_.Begin(version_ + 1);
  }
  const uint64_t begin = next_chunk_ * options_.chunk_elements, staleness = StalenessLocked(*step);
  Work work{.kind = Work::kApply,
            .started = absl::Now(),
            .step = *step,
            .staleness = staleness,
            .chunk = next_chunk_,
            .elements = {begin, begin + SizeOfChunk(begin)},
            .current = weights_.current().values,
            .next = next_,
            .gradient = sums_.Of(*step).sum.total(),
            .clip_scale = clip_scale_.value_or(1)};
  if (staleness > 0 && plan().spec().asynchrony().stale_gradients() == v1::STALE_GRADIENTS_COMPENSATED) {
    work.stale = HeldWeightsLocked(version_ - staleness).value();  // one of the RetainedVersions
  }
  return work;
}

// The loss is the mean over the step's samples; what was pushed are sums.
void Shard::ScaleToMean(const Work& work) const {
  const float scale = 1.0f / static_cast<float>(StepSamples(plan(), work.step));
  const auto [begin, end] = work.elements;
  for (float& value : work.gradient.subspan(begin, end - begin)) value *= scale;
}

absl::Status Shard::ApplyChunk(const Work& work) {
  const auto [begin, end] = work.elements;
  if (!clips()) {
    ScaleToMean(work);
  } else if (work.clip_scale < 1) {  // it was scaled when it was measured
    const float scale = static_cast<float>(work.clip_scale);
    const uint64_t trained = std::clamp(trainable(), begin, end);
    for (float& value : work.gradient.subspan(begin, trained - begin)) value *= scale;
  }
  if (!work.stale.values.empty()) {
    const auto compensation = static_cast<float>(plan().spec().asynchrony().compensation());
    for (uint64_t i = begin; i < std::min(end, trainable()); ++i) {  // statistics have no gradient
      const float gradient = work.gradient[i];
      work.gradient[i] += compensation * gradient * gradient * (work.current[i] - work.stale.values[i]);
    }
  }
  std::copy(work.current.begin() + begin, work.current.begin() + end, work.next.values.begin() + begin);
  for (uint64_t i = std::max(begin, trainable()); i < end; ++i) work.next.values[i] += work.gradient[i];
  double learning_rate = LearningRateAt(plan(), work.step);
  if (plan().spec().asynchrony().stale_gradients() == v1::STALE_GRADIENTS_SMALLER_STEPS) {
    learning_rate /= 1.0 + static_cast<double>(work.staleness);
  }
  MILLRACE_RETURN_IF_ERROR(optimizer_->Step(work.chunk, work.next.values, work.gradient, learning_rate));
  work.next.Finish(begin, end);
  return absl::OkStatus();
}

absl::Status Shard::FinishWork(const Work& work, const absl::Status& applied) {
  absl::Status broken;
  {
    MutexLock lock(&mutex_);
    step_time_ += absl::Now() - work.started;
    if (applied.ok()) {
      if (++next_chunk_ == ChunkCount(range().size(), options_.chunk_elements)) EndStepLocked(work);
      return absl::OkStatus();
    }
    applying_ = false;
    broken = broken_ = absl::InternalError(
        absl::StrCat("shard ", index(), " could not apply step ", work.step, ": ", applied.message()));
  }
  LogError("SHARD BROKEN", {{"reason", broken.message()}});
  if (broken_listener_) broken_listener_(broken);
  return broken;
}

void Shard::EndStepLocked(const Work& last) {
  previous_.push_back(weights_.current());
  if (previous_.size() > RetainedVersions(plan())) previous_.pop_front();
  weights_.Publish(last.next);
  next_ = {};
  next_chunk_ = 0;
  next_measured_ = 0;
  norm_ = {};
  norm_asked_ = false;
  clip_scale_.reset();
  for (const uint64_t weights_version : sums_.Of(last.step).weights_versions) {
    metrics_->staleness.Observe(static_cast<double>(version_ - weights_version));
  }
  sums_.Retire(last.step);
  applied_ahead_.insert(last.step);
  while (applied_ahead_.erase(oldest_step_) > 0) ++oldest_step_;
  ++version_;
  if (IsCheckpointBoundary(plan(), version_)) snapshot_due_ = version_;
  metrics_->steps_applied.Increment();
  metrics_->version.Set(static_cast<double>(version_));
  metrics_->apply_seconds.Observe(absl::ToDoubleSeconds(step_time_));
  step_time_ = absl::ZeroDuration();
}

void Shard::OnApplied(std::function<void(const WeightsProgress&)> listener) {
  listeners_.push_back(std::move(listener));
}

std::string Shard::WaitingFor() const {
  MutexLock lock(&mutex_);
  if (!broken_.ok()) return absl::StrCat("nothing: ", broken_.ToString());
  if (version_ >= plan().total_steps()) return "nothing";
  if (norm_asked_ && !clip_scale_.has_value() && options_.norms != nullptr) {
    return absl::StrCat("step ", oldest_step_, ": ", options_.norms->WaitingFor());
  }
  const StepSum* oldest = sums_.Find(oldest_step_);
  std::vector<uint32_t> missing(plan().spec().slots());
  std::iota(missing.begin(), missing.end(), 0);
  if (oldest != nullptr) missing = oldest->sum.MissingSlots();
  return absl::StrCat("step ", oldest_step_, ": slots ", FormatSlots(missing));
}

}  // namespace millrace
