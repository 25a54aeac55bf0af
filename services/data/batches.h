#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/batch_key.h"
#include "millrace/v1/data.pb.h"
#include "services/data/dataset.h"
#include "services/data/permutation.h"

namespace millrace {

// How the train files' samples are divided: validation samples are the image of [0, validation_count) under a
// permutation keyed by the seed, train samples the image of the rest. A permutation is a bijection, so the two are
// disjoint and together everything. Immutable: any thread.
class TrainValidationSplit {
 public:
  // `count` samples in the train files; `validation_count` < `count`, both checked by Create of BatchSchedule.
  TrainValidationSplit(uint64_t count, uint64_t seed, uint64_t validation_count);

  uint64_t train_count() const { return permutation_.size() - validation_.size(); }
  // The train sample in some fixed order; `index` < train_count().
  uint64_t train(uint64_t index) const { return permutation_(validation_.size() + index); }
  // Indices into the train files, ascending.
  const std::vector<uint64_t>& validation() const { return validation_; }

 private:
  Permutation permutation_;
  std::vector<uint64_t> validation_;
};

// The samples of one batch, as indices into the train files (train, validation) or the test files (test).
struct BatchSamples {
  uint64_t step_samples = 0;  // of the whole step, all slots together
  std::vector<uint64_t> indices;
  uint64_t visits = 0;  // sum of their hashes (visits.h); 0 for validation and test
};

// Says which samples are in which batch: a pure function of (sample counts, plan, key).
//   train:       step t of epoch e holds positions [t * batch_size, (t + 1) * batch_size), cut off at the end, of the
//                epoch's own permutation of the train samples; of its n samples, slot k of S has positions
//                [n * k / S, n * (k + 1) / S)
//   validation, test: step t holds samples [t * E, (t + 1) * E), cut off at the end, in file order, as one slot, where
//                E is the evaluation batch size; there is one epoch, 0
// Every sample of a split is in exactly one slot of one step of each epoch. Immutable: any thread.
class BatchSchedule {
 public:
  // INVALID_ARGUMENT names the field of `plan` and its limit: sizes in [1, 65536], slots in [1, 1024], fewer validation
  // samples than there are in the train files, and no batch over `batch_bytes_max`.
  static absl::StatusOr<BatchSchedule> Create(const v1::BatchPlan& plan, uint64_t train_file_count,
                                              uint64_t test_file_count, uint64_t image_bytes, uint64_t batch_bytes_max);

  const TrainValidationSplit& split() const { return split_; }
  uint64_t SampleCount(v1::Split split) const;
  // Steps per epoch.
  uint64_t StepCount(v1::Split split) const;
  uint32_t SlotCount(v1::Split split) const { return split == v1::SPLIT_TRAIN ? slots_ : 1; }

  // INVALID_ARGUMENT or OUT_OF_RANGE unless every batch of `range` exists.
  absl::Status Check(const v1::BatchRange& range) const;

  // Of a key within a range that Check accepts. May be empty.
  BatchSamples SamplesOf(const BatchKey& key) const;

 private:
  BatchSchedule(const v1::BatchPlan& plan, uint64_t train_file_count, uint64_t test_file_count);

  uint64_t StepSize(v1::Split split) const { return split == v1::SPLIT_TRAIN ? batch_size_ : evaluation_batch_size_; }

  TrainValidationSplit split_;
  uint64_t test_count_;
  uint64_t seed_;
  uint64_t batch_size_;
  uint64_t evaluation_batch_size_;
  uint32_t slots_;
};

// The schedule of `plan` over the dataset, with batches that fit into a message. FAILED_PRECONDITION if the plan is for
// another dataset; else as BatchSchedule::Create.
absl::StatusOr<BatchSchedule> ScheduleFor(const Dataset& dataset, const v1::BatchPlan& plan);

// What the dataset is when divided like that: counts, and statistics over the train split alone.
absl::StatusOr<v1::DatasetInfo> Describe(const Dataset& dataset, const v1::DescribeDatasetRequest& request);

}  // namespace millrace
