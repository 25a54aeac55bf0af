#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/batch_key.h"
#include "common/hashing.h"
#include "gtest/gtest.h"
#include "millrace/v1/data.pb.h"
#include "services/data/batches.h"
#include "services/data/dataset.h"
#include "tests/testing/idx_files.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {

// TinyDataset as the data service has it, and a plan over it: 6 steps of 4 slots an epoch.
class TinyDataTest : public testing::Test {
 protected:
  TinyDataTest() {
    TinyDataset{}.Write(directory_.path());
    dataset_ = Dataset::Load(FindDatasetFiles(directory_.path()).value(), {}).value();
    plan_.set_fingerprint(dataset_->fingerprint());
    plan_.set_seed(3);
    plan_.set_validation_count(10);
    plan_.set_batch_size(16);
    plan_.set_slots(4);
    plan_.set_evaluation_batch_size(8);
  }

  // Compares with what the batch should be, made without the service.
  void ExpectBatch(const v1::Batch& batch, const BatchKey& key) const {
    const BatchSchedule schedule = BatchSchedule::Create(plan_, 100, 20, kImageBytes, 1 << 20).value();
    const BatchSamples samples = schedule.SamplesOf(key);
    EXPECT_EQ((BatchKey{batch.split(), batch.epoch(), batch.step(), batch.slot()}), key);
    EXPECT_EQ(batch.step_samples(), samples.step_samples);
    ASSERT_EQ(batch.samples(), samples.indices.size());
    ASSERT_EQ(batch.images().size(), samples.indices.size() * kImageBytes);
    ASSERT_EQ(batch.labels().size(), samples.indices.size());
    for (size_t i = 0; i < samples.indices.size(); ++i) {
      EXPECT_EQ(static_cast<uint8_t>(batch.images()[i * kImageBytes]), samples.indices[i]);
      EXPECT_EQ(batch.images()[i * kImageBytes + 2], key.split == v1::SPLIT_TEST ? 1 : 0);
      EXPECT_EQ(static_cast<uint64_t>(batch.labels()[i]), samples.indices[i] % 10);
    }
    EXPECT_EQ(batch.checksum(), Checksum64(batch.images() + batch.labels()));
  }

  static constexpr uint64_t kImageBytes = 16;

  const TemporaryDirectory directory_;
  std::shared_ptr<const Dataset> dataset_;
  v1::BatchPlan plan_;
};

}  // namespace millrace
