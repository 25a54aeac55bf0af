// Jobs whose network a user brought. Apart from job_plan_test.cc because it includes LibTorch.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/parameter_server/job_plan.h"
#include "tests/common/model/scripts.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// A user's BatchNorm1d.
TEST(JobPlanTest, SlotsOfOneSampleAreRefusedWhereTheyCannotBeTrained) {
  const TemporaryDirectory directory;
  v1::JobSpec spec;
  spec.set_batch_size(128);
  spec.set_slots(4);
  spec.set_epochs(1);
  spec.set_evaluation_batch_size(500);
  spec.set_architecture("torchscript");
  spec.set_torchscript_path(directory / "net.pt");
  v1::DatasetInfo dataset;
  dataset.set_channels(1);
  dataset.set_height(4);
  dataset.set_width(4);
  dataset.set_classes(10);
  const auto refused = [](const char* why) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)); };
  BatchNormScript(1, 16, 10).save(spec.torchscript_path());
  dataset.set_train_count(128 + 1);
  EXPECT_THAT(ResolveJobPlan(spec, dataset), IsOk());  // of images: one has 16 values for its channel
  BatchNormScript(1, 16, 10, /*pixels_are_channels=*/true).save(spec.torchscript_path());
  EXPECT_THAT(ResolveJobPlan(spec, dataset), refused("an epoch's last batch has 1 samples for 4 slots"));
  dataset.set_train_count(128 + 7);  // 2, 2, 2 and 1
  EXPECT_THAT(ResolveJobPlan(spec, dataset), refused("an epoch's last batch has 7 samples for 4 slots"));
  dataset.set_train_count(128 + 8);
  EXPECT_THAT(ResolveJobPlan(spec, dataset), IsOk());
  dataset.set_train_count(2 * 128);
  EXPECT_THAT(ResolveJobPlan(spec, dataset), IsOk());
  spec.set_slots(65);
  EXPECT_THAT(ResolveJobPlan(spec, dataset), refused("a batch has 128 samples for 65 slots"));
}

}  // namespace
}  // namespace millrace
