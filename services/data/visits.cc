#include "services/data/visits.h"

#include "absl/strings/str_cat.h"
#include "common/expected_visits.h"
#include "common/status_macros.h"
#include "services/data/batches.h"

namespace millrace {
namespace {

v1::ExpectedVisits OfWholeEpoch(const VisitHash& hash, uint64_t count, const std::vector<uint64_t>& validation) {
  uint64_t samples = 0, visits = 0;
  auto left_out = validation.begin();
  for (uint64_t sample = 0; sample < count; ++sample) {
    if (left_out != validation.end() && *left_out == sample) {
      ++left_out;
      continue;
    }
    ++samples;
    visits += hash(sample);
  }
  v1::ExpectedVisits expected;
  expected.set_samples(samples);
  expected.set_visits(visits);
  return expected;
}

v1::ExpectedVisits OfSteps(const BatchSchedule& schedule, const v1::BatchRange& range) {
  uint64_t samples = 0, visits = 0;
  for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
    for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
      const BatchSamples batch = schedule.SamplesOf({v1::SPLIT_TRAIN, range.epoch(), step, slot});
      samples += batch.indices.size();
      visits += batch.visits;
    }
  }
  v1::ExpectedVisits expected;
  expected.set_samples(samples);
  expected.set_visits(visits);
  return expected;
}

}  // namespace

absl::StatusOr<v1::ExpectedVisits> ExpectVisits(const Dataset& dataset, const v1::ExpectedVisitsRequest& request) {
  MILLRACE_ASSIGN_OR_RETURN(const BatchSchedule schedule, ScheduleFor(dataset, request.plan()));
  v1::BatchRange range;
  range.set_split(v1::SPLIT_TRAIN);
  range.set_epoch(request.epoch());
  range.set_step(request.step());
  range.set_steps(request.steps());
  range.set_slot_end(schedule.SlotCount(v1::SPLIT_TRAIN));
  MILLRACE_RETURN_IF_ERROR(schedule.Check(range));
  const bool whole = request.steps() == schedule.StepCount(v1::SPLIT_TRAIN);
  const uint64_t samples = whole ? dataset.train().count() : request.steps() * request.plan().batch_size();
  if (samples > kExpectedVisitsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the visits of ", samples, " samples in one request: over the limit of ", kExpectedVisitsMax));
  }
  if (!whole) return OfSteps(schedule, range);
  return OfWholeEpoch(VisitHash(request.plan().seed(), request.epoch()), dataset.train().count(),
                      schedule.split().validation());
}

}  // namespace millrace
