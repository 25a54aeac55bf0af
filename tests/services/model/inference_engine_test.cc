#include "services/model/inference_engine.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "common/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/fake_model.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/eventually.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

class InferenceEngineTest : public ::testing::Test {
 protected:
  InferenceEngineTest()
      : version_(std::make_unique<FakePredictor>(FakeInfo("mnist", 6),
                                                 [this] {
                                                   ++forward_passes_;
                                                   while (blocked_) std::this_thread::yield();
                                                 }),
                 model_metrics_->AddVersion("mnist", 6)) {}

  InferenceRequest Raw(uint32_t rows = 1) {
    InferenceRequest request;
    request.input = std::span(pixels_).first(kFakeShape.bytes() * rows);
    request.rows = rows;
    return request;
  }

  std::vector<uint8_t> pixels_ = std::vector<uint8_t>(6 * 2000);
  std::atomic<int> forward_passes_ = 0;
  std::atomic<bool> blocked_ = false;
  Metrics metrics_{"test"};
  std::shared_ptr<ModelMetrics> model_metrics_ = ModelMetrics::Create(metrics_);
  LoadedVersion version_;
};

TEST_F(InferenceEngineTest, AnswersAndCounts) {
  InferenceEngine engine(1, 2, model_metrics_);
  const auto result = engine.Infer(version_, Raw(3));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->rows, 3u);
  EXPECT_EQ(result->values.size(), 3 * kFakeClasses);
  EXPECT_EQ(version_.requests(), 1u);
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("millrace_model_requests_total{code=\"OK\",model=\"mnist\",version=\"6\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("millrace_model_requests_in_flight 0"));
}

TEST_F(InferenceEngineTest, SizesAreCheckedAndTheMessageNamesThem) {
  InferenceEngine engine(1, 2, model_metrics_);
  InferenceRequest request = Raw(2);
  request.rows = 3;
  EXPECT_THAT(engine.Infer(version_, request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model mnist takes uint8 [rows, 1, 2, 3]: 18 bytes for rows = 3, got 12")));
  EXPECT_THAT(engine.Infer(version_, Raw(kPredictRowsMax + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1024")));
  EXPECT_EQ(forward_passes_, 0);
}

TEST_F(InferenceEngineTest, ImagesAreDecoded) {
  InferenceEngine engine(1, 2, model_metrics_);
  const Bytes samples = Draw(30, 20, [](uint32_t x, uint32_t) { return static_cast<int>(x); });
  const Bytes png = EncodePng(30, 20, PNG_FORMAT_GRAY, samples.data());
  InferenceRequest request;
  request.kind = InferenceRequest::Kind::kImage;
  request.input = png;
  const auto result = engine.Infer(version_, request);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->rows, 1u);
  request.input = std::span(png).first(png.size() - 1);
  EXPECT_THAT(engine.Infer(version_, request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("corrupt PNG")));
  request.rows = 2;
  EXPECT_THAT(engine.Infer(version_, request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows")));
}

TEST_F(InferenceEngineTest, NothingIsComputedForAClientThatIsGone) {
  InferenceEngine engine(1, 2, model_metrics_);
  InferenceRequest request = Raw();
  request.cancelled = [] { return true; };
  EXPECT_THAT(engine.Infer(version_, request), StatusIs(absl::StatusCode::kCancelled));
  request = Raw();
  request.wait_max = -absl::Seconds(1);
  EXPECT_THAT(engine.Infer(version_, request), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(forward_passes_, 0);
}

TEST_F(InferenceEngineTest, InFlightIsBoundedAndWaitingEndsWithTheDeadline) {
  InferenceEngine engine(1, 2, model_metrics_);
  blocked_ = true;
  std::thread running([&] { EXPECT_THAT(engine.Infer(version_, Raw()), IsOk()); });
  EXPECT_TRUE(Eventually([&] { return forward_passes_ == 1; }));
  InferenceRequest impatient = Raw();
  impatient.wait_max = absl::Milliseconds(5);
  EXPECT_THAT(engine.Infer(version_, impatient), StatusIs(absl::StatusCode::kDeadlineExceeded));
  std::thread waiting([&] { EXPECT_THAT(engine.Infer(version_, Raw()), IsOk()); });
  EXPECT_TRUE(Eventually([&] { return engine.gate().in_flight() == 2; }));
  EXPECT_THAT(engine.Infer(version_, Raw()), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(forward_passes_, 1);
  blocked_ = false;
  running.join();
  waiting.join();
  EXPECT_EQ(forward_passes_, 2);
}

}  // namespace
}  // namespace millrace
