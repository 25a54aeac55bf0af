#include "services/data/batches.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "services/data/batch_encoding.h"
#include "services/data/visits.h"

namespace millrace {
namespace {

// Of images that are drawn when they are asked for: so many say enough.
constexpr uint64_t kDrawnForStatistics = 4096;

absl::Status CheckLimit(absl::string_view field, uint64_t value, uint64_t limit) {
  if (value >= 1 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " is not in [1, ", limit, "]"));
}

absl::Status CheckValidationCount(uint64_t validation_count, uint64_t train_file_count) {
  if (validation_count < train_file_count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("validation_count ", validation_count,
                                                 " leaves nothing to train on: the train files have ", train_file_count,
                                                 " samples"));
}

uint64_t DivideRoundingUp(uint64_t value, uint64_t divisor) { return (value + divisor - 1) / divisor; }

PixelSums SumTrainSplit(const Dataset& dataset, const TrainValidationSplit& split) {
  PixelSums sums;
  std::vector<uint8_t> image(dataset.train().image_bytes());
  const auto sum_image = [&](uint64_t index) {
    dataset.train().CopyImage(index, image);
    return SumPixels(image);
  };
  if (dataset.train_sums().has_value()) {
    // The sums are exact, so subtracting is too.
    sums = *dataset.train_sums();
    for (const uint64_t index : split.validation()) sums -= sum_image(index);
  } else {
    const uint64_t count = std::min(kDrawnForStatistics, split.train_count());
    for (uint64_t i = 0; i < count; ++i) sums += sum_image(split.train(i));
  }
  return sums;
}

}  // namespace

TrainValidationSplit::TrainValidationSplit(uint64_t count, uint64_t seed, uint64_t validation_count)
    : permutation_(count, seed, PermutationPurpose::kSplit, 0), validation_(validation_count) {
  for (uint64_t i = 0; i < validation_count; ++i) validation_[i] = permutation_(i);
  std::ranges::sort(validation_);
}

absl::StatusOr<BatchSchedule> BatchSchedule::Create(const v1::BatchPlan& plan, uint64_t train_file_count,
                                                    uint64_t test_file_count, uint64_t image_bytes,
                                                    uint64_t batch_bytes_max) {
  MILLRACE_RETURN_IF_ERROR(CheckLimit("batch_size", plan.batch_size(), kBatchSamplesMax));
  MILLRACE_RETURN_IF_ERROR(CheckLimit("evaluation_batch_size", plan.evaluation_batch_size(), kBatchSamplesMax));
  MILLRACE_RETURN_IF_ERROR(CheckLimit("slots", plan.slots(), kSlotsMax));
  MILLRACE_RETURN_IF_ERROR(CheckValidationCount(plan.validation_count(), train_file_count));
  const uint64_t samples_max =
      std::max<uint64_t>(DivideRoundingUp(plan.batch_size(), plan.slots()), plan.evaluation_batch_size());
  if (samples_max * (image_bytes + 1) > batch_bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(samples_max, " samples of ", image_bytes,
                                                   " bytes in one batch: over the limit of ", batch_bytes_max,
                                                   " bytes; use more slots or smaller batches"));
  }
  return BatchSchedule(plan, train_file_count, test_file_count);
}

BatchSchedule::BatchSchedule(const v1::BatchPlan& plan, uint64_t train_file_count, uint64_t test_file_count)
    : split_(train_file_count, plan.seed(), plan.validation_count()),
      test_count_(test_file_count),
      seed_(plan.seed()),
      batch_size_(plan.batch_size()),
      evaluation_batch_size_(plan.evaluation_batch_size()),
      slots_(plan.slots()) {}

uint64_t BatchSchedule::SampleCount(v1::Split split) const {
  switch (split) {
    case v1::SPLIT_TRAIN:
      return split_.train_count();
    case v1::SPLIT_VALIDATION:
      return split_.validation().size();
    case v1::SPLIT_TEST:
      return test_count_;
    default:
      return 0;
  }
}

uint64_t BatchSchedule::StepCount(v1::Split split) const {
  return DivideRoundingUp(SampleCount(split), StepSize(split));
}

absl::Status BatchSchedule::Check(const v1::BatchRange& range) const {
  if (range.split() == v1::SPLIT_UNSPECIFIED || !v1::Split_IsValid(range.split())) {
    return absl::InvalidArgumentError(absl::StrCat("split ", static_cast<int>(range.split()), " does not exist"));
  }
  if (range.split() != v1::SPLIT_TRAIN && range.epoch() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("epoch ", range.epoch(), ": only the train split has epochs"));
  }
  const uint64_t steps = StepCount(range.split());
  if (range.steps() == 0 || range.step() >= steps || range.steps() > steps - range.step()) {
    return absl::OutOfRangeError(
        absl::StrCat(range.steps(), " steps from step ", range.step(), ": the split has ", steps, " steps"));
  }
  const uint32_t slots = SlotCount(range.split());
  if (range.slot_begin() >= range.slot_end() || range.slot_end() > slots) {
    return absl::OutOfRangeError(
        absl::StrCat("slots [", range.slot_begin(), ", ", range.slot_end(), "): a step has ", slots));
  }
  return absl::OkStatus();
}

BatchSamples BatchSchedule::SamplesOf(const BatchKey& key) const {
  const auto& [split, epoch, step, slot] = key;
  const uint64_t first = step * StepSize(split);
  const uint64_t size = std::min(StepSize(split), SampleCount(split) - first);
  const uint64_t slots = SlotCount(split);
  const uint64_t begin = first + size * slot / slots;
  const uint64_t end = first + size * (slot + 1) / slots;

  BatchSamples samples{.step_samples = size, .indices = {}, .visits = 0};
  samples.indices.reserve(end - begin);
  if (split == v1::SPLIT_TRAIN) {
    const Permutation order(split_.train_count(), seed_, PermutationPurpose::kShuffle, epoch);
    const VisitHash hash(seed_, epoch);
    for (uint64_t i = begin; i < end; ++i) {
      samples.indices.push_back(split_.train(order(i)));
      samples.visits += hash(samples.indices.back());
    }
  } else {
    for (uint64_t i = begin; i < end; ++i) {
      samples.indices.push_back(split == v1::SPLIT_VALIDATION ? split_.validation()[i] : i);
    }
  }
  return samples;
}

absl::StatusOr<BatchSchedule> ScheduleFor(const Dataset& dataset, const v1::BatchPlan& plan) {
  if (!plan.fingerprint().empty() && plan.fingerprint() != dataset.fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat("the dataset here is ", dataset.name(), " with fingerprint ",
                                                      dataset.fingerprint(), ", not the one with fingerprint ",
                                                      plan.fingerprint()));
  }
  return BatchSchedule::Create(plan, dataset.train().count(), dataset.test().count(), dataset.train().image_bytes(),
                               kMessageBytesMax - kBatchOverheadBytes);
}

absl::StatusOr<v1::DatasetInfo> Describe(const Dataset& dataset, const v1::DescribeDatasetRequest& request) {
  const Samples& train = dataset.train();
  MILLRACE_RETURN_IF_ERROR(CheckValidationCount(request.validation_count(), train.count()));

  // What training will see is everything less the validation samples.
  const TrainValidationSplit split(train.count(), request.seed(), request.validation_count());
  const PixelSums sums = SumTrainSplit(dataset, split);
  std::vector<uint64_t> class_counts = dataset.train_class_counts();
  for (const uint64_t index : split.validation()) --class_counts[train.label(index)];

  v1::DatasetInfo info;
  info.set_name(dataset.name());
  info.set_fingerprint(dataset.fingerprint());
  info.set_channels(train.shape().channels);
  info.set_height(train.shape().height);
  info.set_width(train.shape().width);
  info.set_classes(dataset.classes());
  info.set_train_count(split.train_count());
  info.set_validation_count(split.validation().size());
  info.set_test_count(dataset.test().count());
  info.set_mean(sums.Mean());
  info.set_standard_deviation(sums.StandardDeviation());
  info.mutable_train_class_counts()->Add(class_counts.begin(), class_counts.end());
  return info;
}

}  // namespace millrace
