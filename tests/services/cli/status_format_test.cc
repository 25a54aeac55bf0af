#include "services/cli/status_format.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(FormatJobStatusTest, SaysWhatEveryPartDoesAndWaitsFor) {
  v1::JobStatus status;
  status.set_state(v1::JobStatus::STATE_TRAINING);
  status.set_waiting_for("step 812: slot 5 leased to worker-2, last heard 3.1 s ago");
  status.set_committed_version(800);
  status.mutable_plan()->mutable_spec()->set_model_name("mnist");
  v1::WorkerStatus& worker = *status.add_workers();
  worker.set_worker("worker-2");
  worker.set_doing("computing slots [4, 6) of step 812");
  worker.set_process_id(77);
  v1::ShardInfo& shard = *status.add_shards();
  shard.set_end(640);
  shard.set_address("unix:/s");
  const std::string text = FormatJobStatus(status);
  EXPECT_THAT(text, HasSubstr("mnist, training\n"));
  EXPECT_THAT(text, HasSubstr("step 812: slot 5 leased to worker-2, last heard 3.1 s ago\n"));
  EXPECT_THAT(text, HasSubstr("step 800\n"));
  EXPECT_THAT(text, HasSubstr("computing slots [4, 6) of step 812 (process 77"));
  EXPECT_THAT(text, HasSubstr("parameters 0 to 640 at unix:/s"));
}

TEST(FormatModelsTest, ListsVersionsAndReasons) {
  EXPECT_EQ(FormatModels({}), "  no model yet\n");
  v1::ListModelsResponse models;
  v1::ModelVersionStatus& serving = *models.add_versions();
  serving.set_model("mnist");
  serving.set_version(844);
  serving.set_state(v1::ModelVersionStatus::STATE_SERVING);
  serving.set_accuracy(0.98);
  serving.set_requests(10'000);
  v1::ModelVersionStatus& refused = *models.add_versions();
  refused.set_model("mnist");
  refused.set_version(422);
  refused.set_state(v1::ModelVersionStatus::STATE_REFUSED);
  refused.set_reason("model.pt: SHA-256 differs");
  EXPECT_EQ(FormatModels(models),
            "  mnist version 844  serving, accuracy 98.00 %, 10,000 requests\n"
            "  mnist version 422  refused, 0 requests: model.pt: SHA-256 differs\n");
}

}  // namespace
}  // namespace millrace
