#include "services/data/batches.h"

#include <algorithm>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kBytesMax = 64 << 20;

v1::BatchPlan MakePlan(uint32_t batch_size, uint32_t slots, uint32_t validation_count, uint32_t evaluation_batch_size,
                       uint64_t seed) {
  v1::BatchPlan plan;
  plan.set_batch_size(batch_size);
  plan.set_slots(slots);
  plan.set_validation_count(validation_count);
  plan.set_evaluation_batch_size(evaluation_batch_size);
  plan.set_seed(seed);
  return plan;
}

BatchSchedule MakeSchedule(const v1::BatchPlan& plan, uint64_t train_file_count, uint64_t test_file_count) {
  return BatchSchedule::Create(plan, train_file_count, test_file_count, 16, kBytesMax).value();
}

v1::BatchRange Range(v1::Split split, uint64_t epoch, uint64_t step, uint64_t steps, uint32_t begin, uint32_t end) {
  v1::BatchRange range;
  range.set_split(split);
  range.set_epoch(epoch);
  range.set_step(step);
  range.set_steps(steps);
  range.set_slot_begin(begin);
  range.set_slot_end(end);
  return range;
}

// All indices of one epoch, in order of step and slot.
std::vector<uint64_t> Epoch(const BatchSchedule& schedule, v1::Split split, uint64_t epoch) {
  std::vector<uint64_t> indices;
  for (uint64_t step = 0; step < schedule.StepCount(split); ++step) {
    for (uint32_t slot = 0; slot < schedule.SlotCount(split); ++slot) {
      const BatchSamples samples = schedule.SamplesOf({split, epoch, step, slot});
      indices.insert(indices.end(), samples.indices.begin(), samples.indices.end());
    }
  }
  return indices;
}

// From the same second implementation as the permutation's values.
TEST(BatchScheduleTest, HasTheSpecifiedSamples) {
  const BatchSchedule schedule = MakeSchedule(MakePlan(16, 4, 10, 4, 7), 100, 20);
  EXPECT_THAT(schedule.SamplesOf({v1::SPLIT_TRAIN, 1, 2, 1}).indices, ElementsAre(7, 0, 24, 42));
  EXPECT_THAT(Epoch(schedule, v1::SPLIT_VALIDATION, 0), ElementsAre(1, 14, 39, 45, 54, 64, 74, 75, 83, 86));
  EXPECT_THAT(schedule.SamplesOf({v1::SPLIT_TEST, 0, 3, 0}).indices, ElementsAre(12, 13, 14, 15));
}

RC_GTEST_PROP(BatchScheduleTest, EverySampleOfASplitOncePerEpoch, ()) {
  const auto train_files = *rc::gen::inRange<uint32_t>(1, 600);
  const auto validation = *rc::gen::inRange<uint32_t>(0, train_files);
  const auto test_files = *rc::gen::inRange<uint32_t>(1, 100);
  const BatchSchedule schedule =
      MakeSchedule(MakePlan(*rc::gen::inRange<uint32_t>(1, 130), *rc::gen::inRange<uint32_t>(1, 20), validation,
                            *rc::gen::inRange<uint32_t>(1, 130), *rc::gen::arbitrary<uint64_t>()),
                   train_files, test_files);

  std::vector<uint64_t> all = Epoch(schedule, v1::SPLIT_TRAIN, *rc::gen::arbitrary<uint64_t>());
  RC_ASSERT(all.size() == train_files - validation);
  const std::vector<uint64_t> validation_indices = Epoch(schedule, v1::SPLIT_VALIDATION, 0);
  RC_ASSERT(std::ranges::is_sorted(validation_indices));
  all.insert(all.end(), validation_indices.begin(), validation_indices.end());
  std::ranges::sort(all);
  RC_ASSERT(all.size() == train_files);
  for (uint64_t i = 0; i < all.size(); ++i) RC_ASSERT(all[i] == i);

  const std::vector<uint64_t> test = Epoch(schedule, v1::SPLIT_TEST, 0);
  RC_ASSERT(test.size() == test_files);
  for (uint64_t i = 0; i < test.size(); ++i) RC_ASSERT(test[i] == i);
}

// The cluster's shape must not show: the slots only cut what the step holds.
RC_GTEST_PROP(BatchScheduleTest, SlotsCutTheSameStep, ()) {
  const auto slots = *rc::gen::inRange<uint32_t>(1, 20);
  const BatchSchedule whole = MakeSchedule(MakePlan(32, 1, 10, 8, 3), 300, 20);
  const BatchSchedule cut = MakeSchedule(MakePlan(32, slots, 10, 8, 3), 300, 20);
  const auto epoch = *rc::gen::inRange<uint64_t>(0, 5);
  RC_ASSERT(Epoch(whole, v1::SPLIT_TRAIN, epoch) == Epoch(cut, v1::SPLIT_TRAIN, epoch));
}

TEST(BatchScheduleTest, LastStepIsShortNeitherDroppedNorPadded) {
  // MNIST with 6000 validation samples: 421 full steps and one of 112.
  const BatchSchedule schedule = MakeSchedule(MakePlan(128, 8, 6000, 1000, 1), 60000, 10000);
  EXPECT_EQ(schedule.StepCount(v1::SPLIT_TRAIN), 422);
  EXPECT_EQ(schedule.StepCount(v1::SPLIT_VALIDATION), 6);
  EXPECT_EQ(schedule.StepCount(v1::SPLIT_TEST), 10);
  const BatchSamples samples = schedule.SamplesOf({v1::SPLIT_TRAIN, 0, 421, 7});
  EXPECT_EQ(samples.step_samples, 112);
  EXPECT_EQ(samples.indices.size(), 14);
}

TEST(BatchScheduleTest, SlotsOfAShortStepMayBeEmpty) {
  const BatchSchedule schedule = MakeSchedule(MakePlan(8, 8, 0, 8, 1), 11, 5);  // last step: 3 samples, 8 slots
  std::vector<size_t> sizes;
  for (uint32_t slot = 0; slot < 8; ++slot)
    sizes.push_back(schedule.SamplesOf({v1::SPLIT_TRAIN, 0, 1, slot}).indices.size());
  EXPECT_THAT(sizes, ElementsAre(0, 0, 1, 0, 0, 1, 0, 1));
}

TEST(BatchScheduleTest, EpochsDifferInOrder) {
  const BatchSchedule schedule = MakeSchedule(MakePlan(10, 1, 0, 8, 1), 100, 5);
  EXPECT_NE(Epoch(schedule, v1::SPLIT_TRAIN, 0), Epoch(schedule, v1::SPLIT_TRAIN, 1));
}

TEST(BatchScheduleTest, TheSplitDoesNotDependOnBatchSizes) {
  EXPECT_EQ(Epoch(MakeSchedule(MakePlan(10, 1, 30, 8, 1), 100, 5), v1::SPLIT_VALIDATION, 0),
            Epoch(MakeSchedule(MakePlan(64, 8, 30, 5, 1), 100, 5), v1::SPLIT_VALIDATION, 0));
}

TEST(BatchScheduleTest, RefusesImpossiblePlans) {
  const auto create = [](const v1::BatchPlan& plan, uint64_t image_bytes = 784) {
    return BatchSchedule::Create(plan, 100, 20, image_bytes, kBytesMax);
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(create(MakePlan(0, 1, 0, 1, 1)), StatusIs(kInvalid, HasSubstr("batch_size 0")));
  EXPECT_THAT(create(MakePlan(65537, 1, 0, 1, 1)),
              StatusIs(kInvalid, HasSubstr("batch_size 65537 is not in [1, 65536]")));
  EXPECT_THAT(create(MakePlan(1, 0, 0, 1, 1)), StatusIs(kInvalid, HasSubstr("slots 0")));
  EXPECT_THAT(create(MakePlan(1, 1025, 0, 1, 1)), StatusIs(kInvalid, HasSubstr("slots 1025")));
  EXPECT_THAT(create(MakePlan(1, 1, 0, 0, 1)), StatusIs(kInvalid, HasSubstr("evaluation_batch_size 0")));
  EXPECT_THAT(create(MakePlan(1, 1, 100, 1, 1)), StatusIs(kInvalid, HasSubstr("validation_count 100")));
  EXPECT_THAT(create(MakePlan(65536, 1, 0, 1, 1), 2000), StatusIs(kInvalid, HasSubstr("65536 samples of 2000 bytes")));
  EXPECT_THAT(create(MakePlan(65536, 1, 0, 65536, 1)), IsOk());
}

TEST(BatchScheduleTest, RefusesRangesThatDoNotExist) {
  const BatchSchedule schedule =
      MakeSchedule(MakePlan(16, 4, 0, 4, 7), 100, 20);  // 7 steps; 5 of test, 0 of validation
  constexpr auto kOutOfRange = absl::StatusCode::kOutOfRange;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 1 << 20, 0, 7, 0, 4)), IsOk());
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TEST, 0, 4, 1, 0, 1)), IsOk());
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, 7, 1, 0, 4)), StatusIs(kOutOfRange, HasSubstr("has 7 steps")));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, 1, ~uint64_t{0}, 0, 4)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, ~uint64_t{0}, 1, 0, 4)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, 0, 0, 0, 4)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, 0, 1, 0, 5)), StatusIs(kOutOfRange, HasSubstr("slots [0, 5)")));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TRAIN, 0, 0, 1, 2, 2)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TEST, 0, 0, 1, 0, 2)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_TEST, 1, 0, 1, 0, 1)), StatusIs(kInvalid, HasSubstr("epoch 1")));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_VALIDATION, 0, 0, 1, 0, 1)), StatusIs(kOutOfRange));
  EXPECT_THAT(schedule.Check(Range(v1::SPLIT_UNSPECIFIED, 0, 0, 1, 0, 1)), StatusIs(kInvalid));
  EXPECT_THAT(schedule.Check(Range(static_cast<v1::Split>(99), 0, 0, 1, 0, 1)),
              StatusIs(kInvalid, HasSubstr("split 99")));
}

TEST(DescribeTest, CountsWhatIsLeftForTraining) {
  const TemporaryDirectory directory;
  TinyDataset{}.Write(directory.path());
  const auto dataset = Dataset::Load(FindDatasetFiles(directory.path()).value(), {}).value();
  v1::DescribeDatasetRequest request;
  request.set_seed(5);
  request.set_validation_count(30);
  const absl::StatusOr<v1::DatasetInfo> info = Describe(*dataset, request);
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 70);
  EXPECT_EQ(info->validation_count(), 30);
  EXPECT_EQ(info->test_count(), 20);
  EXPECT_EQ(info->channels(), 1);
  EXPECT_EQ(info->classes(), 10);
  EXPECT_EQ(info->fingerprint(), dataset->fingerprint());

  // Statistics and counts over exactly the samples that the train split has.
  const BatchSchedule schedule = MakeSchedule(MakePlan(16, 4, 30, 4, 5), 100, 20);
  std::vector<uint8_t> pixels;
  std::vector<uint64_t> class_counts(10);
  for (const uint64_t index : Epoch(schedule, v1::SPLIT_TRAIN, 0)) {
    const auto image = dataset->train().image(index);
    pixels.insert(pixels.end(), image.begin(), image.end());
    ++class_counts[dataset->train().label(index)];
  }
  EXPECT_DOUBLE_EQ(info->mean(), SumPixels(pixels).Mean());
  EXPECT_DOUBLE_EQ(info->standard_deviation(), SumPixels(pixels).StandardDeviation());
  EXPECT_THAT(info->train_class_counts(), testing::ElementsAreArray(class_counts));

  request.set_validation_count(100);
  EXPECT_THAT(Describe(*dataset, request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("100 samples")));
}

}  // namespace
}  // namespace millrace
