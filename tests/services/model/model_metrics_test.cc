#include "services/model/model_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ModelMetricsTest, AVersionsSeriesLiveAsLongAsAnyOfItsLives) {
  Metrics metrics("test");
  const auto model_metrics = ModelMetrics::Create(metrics);
  auto first_life = model_metrics->AddVersion("mnist", 1);
  auto second_life = model_metrics->AddVersion("mnist", 1);
  first_life->CountRequest(absl::StatusCode::kNotFound, absl::Seconds(1));
  first_life.reset();
  second_life->ObserveBatch(3, Batcher::Release::kIdleExecutor);
  EXPECT_THAT(metrics.Render(), HasSubstr("millrace_model_batch_rows_count{model=\"mnist\",version=\"1\"} 1"));
  second_life.reset();
  EXPECT_THAT(metrics.Render(), Not(HasSubstr("version=\"1\"")));
}

TEST(ModelMetricsTest, SeriesMayOutliveTheirOwner) {
  Metrics metrics("test");
  auto model_metrics = ModelMetrics::Create(metrics);
  auto series = model_metrics->AddVersion("mnist", 1);
  model_metrics.reset();
  series->CountExpiredExecuted(1);
  series.reset();
  EXPECT_THAT(metrics.Render(), Not(HasSubstr("version=\"1\"")));
}

}  // namespace
}  // namespace millrace
