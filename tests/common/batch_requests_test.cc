#include "common/batch_requests.h"

#include <deque>
#include <vector>

#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

BatchKey Slot(uint64_t step, uint32_t slot) { return {v1::SPLIT_TRAIN, 0, step, slot}; }

v1::Batch BatchOf(const BatchKey& key) {
  v1::Batch batch;
  batch.set_split(key.split);
  batch.set_step(key.step);
  batch.set_slot(key.slot);
  batch.set_step_samples(2);
  batch.set_samples(1);
  batch.set_images("pixels");
  batch.set_labels("l");
  batch.set_checksum(Checksum64("pixelsl"));
  return batch;
}

class BatchRequestsTest : public testing::Test {
 protected:
  void Add(const std::vector<BatchKey>& keys) { ASSERT_THAT(requests_.Add(keys, absl::UnixEpoch()), IsOk()); }
  BatchRequests requests_;
};

TEST_F(BatchRequestsTest, WhatANewStreamIsAskedIsWhatHasNotArrivedInItsOldOrder) {
  Add({Slot(7, 0), Slot(7, 1), Slot(3, 0), Slot(5, 0)});
  EXPECT_EQ(requests_.NextRange()->step(), 7u);
  EXPECT_EQ(requests_.NextRange()->step(), 3u);
  EXPECT_EQ(requests_.in_flight(), 3u);
  EXPECT_TRUE(requests_.Deliver(BatchOf(Slot(7, 0))));

  requests_.AskAgain();
  EXPECT_EQ(requests_.in_flight(), 0u);
  EXPECT_EQ(requests_.missing(), 3u);
  const v1::BatchRange again = *requests_.NextRange();
  EXPECT_EQ(again.step(), 7u);
  EXPECT_EQ(again.slot_begin(), 1u);
  EXPECT_EQ(requests_.NextRange()->step(), 3u);
  EXPECT_EQ(requests_.NextRange()->step(), 5u);
  EXPECT_FALSE(requests_.NextRange().has_value());
  EXPECT_TRUE(requests_.Take(Slot(7, 0)).has_value()) << "it has arrived, though the stream is gone";
}

TEST_F(BatchRequestsTest, WhatCameTwiceOrIsForgottenIsWantedByNobody) {
  Add({Slot(0, 0), Slot(1, 0)});
  (void)requests_.NextRange();
  EXPECT_TRUE(requests_.Deliver(BatchOf(Slot(0, 0))));
  EXPECT_FALSE(requests_.Deliver(BatchOf(Slot(0, 0))));
  const BatchKey forgotten = Slot(1, 0);
  requests_.Forget({&forgotten, 1});
  EXPECT_FALSE(requests_.Deliver(BatchOf(forgotten)));
  EXPECT_FALSE(requests_.contains(forgotten));
  EXPECT_TRUE(requests_.Take(Slot(0, 0)).has_value());
  EXPECT_FALSE(requests_.Take(Slot(0, 0)).has_value());
}

TEST(CheckBatchTest, NamesTheBatchAndItsFault) {
  v1::Batch batch = BatchOf(Slot(4, 2));
  EXPECT_THAT(CheckBatch(batch, 6), IsOk());
  EXPECT_THAT(CheckBatch(batch, 0), IsOk());
  EXPECT_THAT(CheckBatch(batch, 7), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("step 4 slot 2: 1 images of 7")));
  batch.set_images("pixelz");
  EXPECT_THAT(CheckBatch(batch, 6), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("checksum")));
  batch.set_labels("");
  EXPECT_THAT(CheckBatch(batch, 6), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("1 samples with 0 labels")));
}

// Whatever the keys, the ranges name the same batches in the same order.
RC_GTEST_PROP(TakeRangeTest, RangesNameTheKeys, ()) {
  const auto small = rc::gen::inRange<uint64_t>(0, 4);
  std::deque<BatchKey> keys;
  const auto count = *rc::gen::inRange(1, 40);
  for (int i = 0; i < count; ++i) {
    const bool train = *rc::gen::arbitrary<bool>();
    const BatchKey key = train ? BatchKey{v1::SPLIT_TRAIN, *small / 3, *small, static_cast<uint32_t>(*small)}
                               : BatchKey{v1::SPLIT_TEST, 0, *small, 0};
    const auto repeat = *rc::gen::inRange<uint64_t>(1, 5);  // runs, so that there is something to join
    for (uint64_t r = 0; r < repeat; ++r) {
      keys.push_back(
          {key.split, key.epoch, key.step + (train ? r / 2 : r), key.slot + static_cast<uint32_t>(train ? r % 2 : 0)});
    }
  }
  const std::deque<BatchKey> expected = keys;
  std::deque<BatchKey> named;
  while (!keys.empty()) {
    const auto batches_max = *rc::gen::inRange<uint64_t>(1, 10);
    const v1::BatchRange range = TakeRange(keys, batches_max);
    RC_ASSERT(range.steps() >= 1u);
    RC_ASSERT(range.slot_begin() < range.slot_end());
    RC_ASSERT(range.steps() * (range.slot_end() - range.slot_begin()) <= batches_max);
    for (uint64_t step = range.step(); step < range.step() + range.steps(); ++step) {
      for (uint32_t slot = range.slot_begin(); slot < range.slot_end(); ++slot) {
        named.push_back({range.split(), range.epoch(), step, slot});
      }
    }
  }
  RC_ASSERT(named == expected);
}

TEST(TakeRangeTest, JoinsWholeSteps) {
  std::deque<BatchKey> keys;
  for (uint64_t step = 0; step < 3; ++step) {
    for (uint32_t slot = 4; slot < 8; ++slot) keys.push_back({v1::SPLIT_TRAIN, 0, step, slot});
  }
  const v1::BatchRange range = TakeRange(keys, 1024);
  EXPECT_EQ(range.steps(), 3);
  EXPECT_EQ(range.slot_begin(), 4);
  EXPECT_EQ(range.slot_end(), 8);
  EXPECT_THAT(keys, IsEmpty());
}

}  // namespace
}  // namespace millrace
