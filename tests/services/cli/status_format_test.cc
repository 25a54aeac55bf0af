#include "services/cli/status_format.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

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
