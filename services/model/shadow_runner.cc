#include "services/model/shadow_runner.h"

#include <time.h>

#include <utility>

#include "common/thread_priority.h"
#include "services/model/image_preparation.h"
#include "services/model/row_runner.h"

namespace millrace {
namespace {

// Of the calling thread.
absl::Duration ProcessorTime() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

}  // namespace

Comparison RunShadow(const ShadowJob& job, bool candidate_first) {
  const ModelInfo& info = job.stable->info();
  std::vector<uint8_t> decoded;
  if (job.kind == InferenceRequest::Kind::kImage) {
    absl::StatusOr<std::vector<uint8_t>> pixels = RowOfPicture(job.bytes, info.input);
    if (!pixels.ok()) return {};
    decoded = *std::move(pixels);
  }
  const std::vector<uint8_t>& pixels = decoded.empty() ? job.bytes : decoded;
  RowAnswers stable, candidate;
  absl::Duration stable_time, candidate_time;
  const auto run = [&](const LoadedVersion& version, RowAnswers& answers, absl::Duration& time) {
    const absl::Duration start = ProcessorTime();
    answers = job.kind == InferenceRequest::Kind::kFloats
                  ? RunRows(version.predictor(), std::span<const float>(job.floats), job.rows, job.deterministic)
                  : RunRows(version.predictor(), std::span<const uint8_t>(pixels), job.rows, job.deterministic);
    time = ProcessorTime() - start;
  };
  if (candidate_first) run(*job.candidate, candidate, candidate_time);
  run(*job.stable, stable, stable_time);
  if (!candidate_first) run(*job.candidate, candidate, candidate_time);

  Comparison comparison = Compare(info, stable, candidate);
  comparison.stable_time = stable_time;
  comparison.candidate_time = candidate_time;
  return comparison;
}

ShadowRunner::ShadowRunner() : thread_([this] { Run(); }) {}

ShadowRunner::~ShadowRunner() { Stop(); }

void ShadowRunner::Stop() {
  std::deque<ShadowJob> dropped;  // its versions go after the lock
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    dropped = std::exchange(waiting_, {});
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool ShadowRunner::has_room() const {
  MutexLock lock(&mutex_);
  return !stop_ && waiting_.size() < kJobsMax;
}

bool ShadowRunner::Offer(ShadowJob job) {
  MutexLock lock(&mutex_);
  if (stop_ || waiting_.size() >= kJobsMax) return false;
  waiting_.push_back(std::move(job));
  changed_.Signal();
  return true;
}

void ShadowRunner::Run() {
  LowerThreadPriority();
  std::weak_ptr<const LoadedVersion> warm;  // the candidate before
  for (uint64_t turn = 0;; ++turn) {
    ShadowJob job;
    {
      MutexLock lock(&mutex_);
      while (!stop_ && waiting_.empty()) changed_.Wait(&mutex_);
      if (stop_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (warm.lock() != job.candidate) {
      RunShadow(job, true);  // its first time on this thread takes longer and does not count
      warm = job.candidate;
    }
    job.compared(RunShadow(job, turn % 2 == 0));
  }
}

}  // namespace millrace
