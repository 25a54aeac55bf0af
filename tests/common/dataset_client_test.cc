#include "common/dataset_client.h"

#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/coordinator.pb.h"
#include "tests/services/data/data_life.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

class DatasetClientTest : public TinyDataTest {
 protected:
  const std::string address_ = "unix:" + (directory_ / "socket").string();
};

TEST_F(DatasetClientTest, DescribesTheDatasetOnceItIsThere) {
  std::unique_ptr<DataLife> life;
  v1::DescribeDatasetRequest request;
  request.set_validation_count(10);
  std::string waited_for;
  const auto info = DescribeDataset(address_, request, kPatience, [&](std::string_view what, absl::Duration) {
    waited_for = what;
    if (life == nullptr) life = std::make_unique<DataLife>(address_, dataset_);
    return true;
  });
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 90);
  EXPECT_THAT(waited_for, HasSubstr("the data service at " + address_));
}

TEST_F(DatasetClientTest, DescribeGivesUp) {
  const auto go_on = [](std::string_view, absl::Duration time) {
    absl::SleepFor(time);
    return true;
  };
  EXPECT_THAT(DescribeDataset(address_, {}, absl::Milliseconds(150), go_on),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr(address_)));
  EXPECT_THAT(DescribeDataset(address_, {}, kPatience, [](std::string_view, absl::Duration) { return false; }),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr(address_)));
  const DataLife life(address_, dataset_);
  v1::DescribeDatasetRequest impossible;
  impossible.set_validation_count(100);
  EXPECT_THAT(DescribeDataset(address_, impossible, kPatience, go_on), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(BatchPlanOfTest, TakesWhatBatchesDependOn) {
  v1::JobPlan job;
  job.mutable_dataset()->set_fingerprint("f");
  job.mutable_spec()->set_seed(1);
  job.mutable_spec()->set_validation_count(2);
  job.mutable_spec()->set_batch_size(3);
  job.mutable_spec()->set_slots(4);
  job.mutable_spec()->set_evaluation_batch_size(5);
  const v1::BatchPlan batches = BatchPlanOf(job);
  EXPECT_EQ(batches.fingerprint(), "f");
  EXPECT_EQ(batches.seed(), 1u);
  EXPECT_EQ(batches.validation_count(), 2u);
  EXPECT_EQ(batches.batch_size(), 3u);
  EXPECT_EQ(batches.slots(), 4u);
  EXPECT_EQ(batches.evaluation_batch_size(), 5u);
  EXPECT_FALSE(batches.has_augmentation());
  job.mutable_spec()->mutable_augmentation()->set_rotate(6);
  EXPECT_EQ(BatchPlanOf(job).augmentation().rotate(), 6);
}

}  // namespace
}  // namespace millrace
