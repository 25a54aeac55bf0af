// How a shard clips the gradient of a step by its norm over all shards, before it applies the step.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "services/parameter_server/shard.h"
#include "services/parameter_server/shard_metrics.h"

namespace millrace {

std::optional<Shard::Work> Shard::TakeNormWork() {
  Work work{.started = absl::Now(), .step = oldest_step_, .chunk = next_measured_};
  const uint64_t chunks = ChunkCount(range().size(), options_.chunk_elements);
  const StepSum* const sum = sums_.Find(oldest_step_);
  if (sum != nullptr && next_measured_ < chunks && sum->sum.complete(next_measured_)) {
    const uint64_t begin = next_measured_ * options_.chunk_elements;
    work.kind = Work::kMeasure;
    work.elements = {begin, begin + SizeOfChunk(begin)};
    work.gradient = sums_.Of(oldest_step_).sum.total();
    return work;
  }
  if (next_measured_ == chunks && !norm_asked_) {
    norm_asked_ = true;
    work.kind = Work::kAskNorm;
    work.norm = norm_;
    return work;
  }
  applying_ = false;
  return std::nullopt;
}

void Shard::MeasureChunk(const Work& work) {
  ScaleToMean(work);
  const auto [begin, end] = work.elements;
  SquaredNorm norm;
  const uint64_t trained = std::clamp(trainable(), begin, end);
  norm.AddSquaresOf(work.gradient.subspan(begin, trained - begin));
  MutexLock lock(&mutex_);
  norm_.Add(norm);
  ++next_measured_;
  step_time_ += absl::Now() - work.started;
}

// The answer may come before the call returns: applying_ is set, so that this thread goes on with it.
void Shard::AskNorm(const Work& work) {
  if (options_.norms == nullptr) return NoteNorm(work.step, work.norm);
  options_.norms->Sum(work.step, work.norm, [self = weak_from_this(), step = work.step](const SquaredNorm& total) {
    const std::shared_ptr<Shard> shard = self.lock();
    if (shard == nullptr) return;
    shard->NoteNorm(step, total);
    (void)shard->Apply();  // what fails is what OnBroken tells
  });
}

void Shard::NoteNorm(uint64_t step, const SquaredNorm& total) {
  const double norm = total.norm();
  MutexLock lock(&mutex_);
  if (step != oldest_step_ || clip_scale_.has_value()) return;
  clip_scale_ = ClipScale(plan().spec().clip_norm(), norm);
  metrics_->gradient_norm.Set(norm);
  if (*clip_scale_ < 1) metrics_->clipped_steps.Increment();
}

void Shard::ReceiveNorm(uint32_t shard, uint64_t step, const SquaredNorm& part, NormExchange::Answer answer) {
  if (options_.norms == nullptr) {
    return answer(absl::FailedPreconditionError("this shard has no norms to add up with those of others"));
  }
  options_.norms->Receive(shard, step, part, std::move(answer));
}

void Shard::CancelNorms() {
  if (options_.norms != nullptr) options_.norms->Cancel();
}

}  // namespace millrace
