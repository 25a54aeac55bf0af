#include "tests/simulation/toy_job.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "common/hashing.h"
#include "common/model/servable.h"
#include "common/random.h"
#include "services/parameter_server/checkpoint_manifest.h"
#include "services/parameter_server/learning_rate.h"
#include "services/parameter_server/optimizer.h"
#include "services/parameter_server/schedule.h"
#include "services/worker/work_loop.h"

namespace millrace::simulation {
namespace {

// A fast mixer (splitmix64's), for what only has to look random.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Of either sign, with a magnitude between 2^-12 and 2^4.
float Noise(uint64_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits >> 63) << 31, exponent = 115 + (bits & 15);
  return std::bit_cast<float>(sign | exponent << 23 | static_cast<uint32_t>(bits >> 32 & 0x7fffff));
}

std::span<const uint8_t> Bytes(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

RoundId RoundOf(const v1::JobPlan& plan, const BatchKey& key, uint32_t* unit) {
  *unit = key.split == v1::SPLIT_TRAIN ? key.slot : static_cast<uint32_t>(key.step);
  if (key.split == v1::SPLIT_TRAIN) return {v1::Lease::KIND_TRAIN, key.epoch * plan.steps_per_epoch() + key.step};
  return {key.split == v1::SPLIT_VALIDATION ? v1::Lease::KIND_VALIDATION : v1::Lease::KIND_TEST, 0};
}

}  // namespace

v1::Batch ToyBatch(const v1::JobPlan& plan, const BatchKey& key) {
  uint32_t unit = 0;
  const RoundId round = RoundOf(plan, key, &unit);
  const uint32_t samples = UnitSamples(plan, round, unit);
  v1::Batch batch;
  batch.set_split(key.split);
  batch.set_epoch(key.epoch);
  batch.set_step(key.step);
  batch.set_slot(key.slot);
  batch.set_samples(samples);
  batch.set_step_samples(round.is_train() ? StepSamples(plan, round.version) : samples);
  for (uint32_t i = 0; i < samples; ++i) {
    if (round.is_train()) batch.set_visits(batch.visits() + Mix(Mix(round.version) + unit * 64 + i));
    const uint64_t bits =
        Mix(Mix(plan.spec().seed() + key.split) + (key.epoch * 1000 + key.step) * 4096 + unit * 64 + i);
    batch.mutable_images()->push_back(static_cast<char>(bits));
    batch.mutable_labels()->push_back(static_cast<char>(bits >> 8 & 1));
  }
  return batch;
}

std::vector<float> ToyInitialWeights(const v1::JobPlan& plan) {
  std::vector<float> weights(plan.parameter_count());
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.1f * Noise(Mix(plan.spec().seed() * 31 + i));
  return weights;
}

absl::StatusOr<BatchResult> ToyModel::ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                                      uint64_t noise_seed) {
  // Time passes first: whoever changes the weights meanwhile is found out.
  if (!compute_()) return absl::CancelledError("the worker was killed");
  std::fill(gradient_.begin(), gradient_.end(), 0.0f);
  for (size_t sample = 0; sample < images.size(); ++sample) {
    const uint64_t key = noise_seed + (uint64_t{images[sample]} << 8 | labels[sample]) * 0x10001;
    for (size_t i = 0; i < gradient_.size(); ++i) gradient_[i] += parameters_[i] * 0.25f + Noise(Mix(key + i));
  }
  const std::span<const float> flat = gradient_;
  pieces_ = {flat.first(flat.size() / 3), flat.subspan(flat.size() / 3)};
  return Results(images, labels);
}

absl::StatusOr<BatchResult> ToyModel::Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) {
  if (!compute_()) return absl::CancelledError("the worker was killed");
  return Results(images, labels);
}

BatchResult ToyModel::Results(std::span<const uint8_t> images, std::span<const uint8_t> labels) const {
  BatchResult result;
  result.samples = static_cast<uint32_t>(images.size());
  for (size_t sample = 0; sample < images.size(); ++sample) {
    const float output = parameters_[images[sample] % parameters_.size()];
    result.loss_sum += std::abs(output - labels[sample]) / 3.0;
    result.correct += (output > 0) == (labels[sample] != 0);
  }
  return result;
}

Reference::Reference(const v1::JobPlan& plan) : plan_(plan), current_(ToyInitialWeights(plan)) {
  // One range, in one chunk.
  const std::unique_ptr<ShardOptimizer> optimizer =
      *ShardOptimizer::Create(plan.spec().optimizer(), current_.size(), uint64_t{1} << 18);
  for (uint64_t version = 0;; ++version) {
    weights_.push_back(current_);
    weights_sha256_.push_back(WeightsSha256(current_));
    optimizer_sha256_.push_back(OptimizerSha256(optimizer->Save()));
    if (IsEpochEnd(plan, version)) {
      Evaluate(version, v1::Lease::KIND_VALIDATION);
      Evaluate(version, v1::Lease::KIND_TEST);
    }
    if (version == plan.total_steps()) break;
    const uint32_t slots = plan.spec().slots();
    slot_checksums_.emplace_back();
    std::vector<float> gradient = NodeGradient(version, 0, slots, std::bit_ceil(slots));
    const float scale = 1.0f / static_cast<float>(StepSamples(plan, version));
    for (float& value : gradient) value *= scale;
    if (!optimizer->Step(0, current_, gradient, LearningRateAt(plan, version)).ok()) std::abort();
  }
}

std::vector<float> Reference::Travelled(std::vector<float> values) const {
  Round(plan_.spec().wire(), values);
  return values;
}

// The fixed tree by its definition: left half plus right half, of a power of two; every node could travel.
std::vector<float> Reference::NodeGradient(uint64_t step, uint32_t begin, uint32_t end, uint32_t width) {
  if (width == 1) {
    const BatchKey key{v1::SPLIT_TRAIN, step / plan_.steps_per_epoch(), step % plan_.steps_per_epoch(), begin};
    const v1::Batch batch = ToyBatch(plan_, key);
    const std::vector<float> weights = Travelled(weights_[WeightsVersionFor(plan_, step)]);
    ToyModel model(weights, [] { return true; });
    if (!model
             .ComputeGradient(Bytes(batch.images()), Bytes(batch.labels()),
                              WorkLoop::NoiseSeed(plan_.spec().seed(), step, begin))
             .ok()) {
      std::abort();
    }
    std::vector<float> gradient;
    for (const std::span<const float> piece : model.gradient())
      gradient.insert(gradient.end(), piece.begin(), piece.end());
    slot_checksums_.back().push_back(Checksum64(std::as_bytes(std::span(gradient))));
    return Travelled(std::move(gradient));
  }
  const uint32_t middle = begin + width / 2;
  std::vector<float> sum = NodeGradient(step, begin, std::min(middle, end), width / 2);
  if (middle >= end) return sum;
  const std::vector<float> right = NodeGradient(step, middle, end, width / 2);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
  return Travelled(std::move(sum));
}

void Reference::Evaluate(uint64_t version, v1::Lease::Kind kind) {
  const RoundId round{kind, version};
  RoundSums& sums = evaluations_[{kind, version}];
  for (uint32_t unit = 0; unit < RoundUnits(plan_, round); ++unit) {
    const v1::Split split = kind == v1::Lease::KIND_VALIDATION ? v1::SPLIT_VALIDATION : v1::SPLIT_TEST;
    const v1::Batch batch = ToyBatch(plan_, {split, 0, unit, 0});
    const std::vector<float> weights = Travelled(current_);
    ToyModel model(weights, [] { return true; });
    const BatchResult result = *model.Evaluate(Bytes(batch.images()), Bytes(batch.labels()));
    sums.samples += result.samples;
    sums.loss += result.loss_sum;
    sums.correct += result.correct;
  }
}

}  // namespace millrace::simulation
