// How training is going, from the sums of completed steps: what people look at while they wait. Pure; one thread at a
// time.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"
#include "services/parameter_server/round_state.h"

namespace millrace {

class TrainingProgress {
 public:
  void StepCompleted(const RoundSums& sums, absl::Duration took) {
    steps_.push_back({sums, took});
    if (steps_.size() > kStepsMax) steps_.pop_front();
    samples_ += sums.samples;
    seconds_ += absl::ToDoubleSeconds(took);
  }

  // The job goes back: what the last steps were says nothing of the next ones.
  void Rewind() { steps_.clear(); }

  // Mean over the last completed steps, at most 100; 0 before the first. Per sample.
  double loss() const {
    double loss = 0, samples = 0;
    ForLast(kLossSteps, [&](const Step& step) { loss += step.sums.loss, samples += step.sums.samples; });
    return samples > 0 ? loss / samples : 0;
  }
  double accuracy() const {
    double correct = 0, samples = 0;
    ForLast(kLossSteps, [&](const Step& step) { correct += step.sums.correct, samples += step.sums.samples; });
    return samples > 0 ? correct / samples : 0;
  }
  // Over the last few seconds of training; evaluations do not count.
  double images_per_second() const {
    double samples = 0;
    absl::Duration time;
    ForLast(kStepsMax, [&](const Step& step) {
      if (time > kRateWindow) return;
      samples += step.sums.samples;
      time += step.took;
    });
    return time > absl::ZeroDuration() ? samples / absl::ToDoubleSeconds(time) : 0;
  }
  uint64_t samples() const { return samples_; }         // in all, repeated steps included
  double training_seconds() const { return seconds_; }  // in train rounds

 private:
  struct Step {
    RoundSums sums;
    absl::Duration took;
  };
  static constexpr size_t kLossSteps = 100;
  static constexpr size_t kStepsMax = 4096;
  static constexpr absl::Duration kRateWindow = absl::Seconds(5);

  // Calls fn for at most `count` steps, newest first.
  template <typename Fn>
  void ForLast(size_t count, Fn fn) const {
    for (auto step = steps_.rbegin(); step != steps_.rend() && count > 0; ++step, --count) fn(*step);
  }

  std::deque<Step> steps_;
  uint64_t samples_ = 0;
  double seconds_ = 0;
};

}  // namespace millrace
