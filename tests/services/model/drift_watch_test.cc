#include "services/model/drift_watch.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/engine_fixture.h"

namespace millrace {
namespace {

constexpr uint32_t kClasses = 4;
constexpr size_t kImage = 10;

// The series of a family, by its labels but model and version.
std::map<std::string, prometheus::ClientMetric> Series(Metrics& metrics, const std::string& family_name) {
  std::map<std::string, prometheus::ClientMetric> series;
  for (const auto& family : metrics.registry()->Collect()) {
    if (family.name != family_name) continue;
    for (const auto& metric : family.metric) {
      std::string key;
      for (const auto& label : metric.label) {
        if (label.name == "class" || label.name == "of") key += label.value;
      }
      series[key] = metric;
    }
  }
  return series;
}

class DriftWatchTest : public ::testing::Test {
 protected:
  // Rows of one class, by turns, and of one ink.
  static Distribution Rows(uint64_t rows, uint8_t pixel, uint32_t classes_used = kClasses) {
    Distribution result{.classes = std::vector<uint64_t>(kClasses)};
    const std::vector<uint8_t> image(kImage, pixel);
    for (uint64_t row = 0; row < rows; ++row) {
      std::vector<float> answer(kClasses, 0.05f);
      answer[row % classes_used] = 0.85f;
      result.Add(answer, std::span(image), 1);
    }
    return result;
  }
  void Show(DriftWatch& watch, uint64_t rows, uint8_t pixel, uint32_t classes_used = kClasses) {
    const std::vector<uint8_t> image(kImage, pixel);
    for (uint64_t row = 0; row < rows; ++row) {
      std::vector<float> answer(kClasses, 0.05f);
      answer[row % classes_used] = 0.85f;
      watch.Observe(answer, std::span(image), 1);
    }
  }
  double Psi(const std::string& of) {
    const auto series = Series(metrics_, "millrace_model_drift_psi");
    const auto found = series.find(of);
    return found == series.end() ? -1 : found->second.gauge.value;
  }

  Metrics metrics_{"test"};
  DriftFamilies families_ = DriftFamilies::Register(*metrics_.registry());
  const prometheus::Labels labels_ = {{"model", "mnist"}, {"version", "7"}};
};

TEST_F(DriftWatchTest, TellsRowsThatLookLikeTheReferenceFromRowsThatDoNot) {
  DriftWatch watch(families_, labels_, kClasses, Rows(500, 30));
  Show(watch, DriftWatch::kWindowRows - 1, 30);
  EXPECT_EQ(Psi("ink"), -1) << "not known yet";
  Show(watch, 1, 30);
  for (const char* of : {"class", "confidence", "ink"}) EXPECT_LT(Psi(of), 0.01) << of;
  Show(watch, 2 * DriftWatch::kWindowRows, 90);  // what is older than that does not count
  EXPECT_GT(Psi("ink"), 1);
  EXPECT_LT(Psi("class"), 0.01);
  Show(watch, 2 * DriftWatch::kWindowRows, 30, /*classes_used=*/2);
  EXPECT_LT(Psi("ink"), 0.05) << "the half rows of twenty empty bins weigh more in the smaller reference";
  EXPECT_GT(Psi("class"), 0.25);
}

TEST_F(DriftWatchTest, AnotherLifeIsComparedWithItsOwnReference) {
  DriftWatch watch(families_, labels_, kClasses, Rows(500, 30));
  Show(watch, DriftWatch::kWindowRows, 90);
  EXPECT_GT(Psi("ink"), 1);
  watch.SetReference(Rows(500, 90));
  Show(watch, DriftWatch::kWindowRows, 90);
  EXPECT_LT(Psi("ink"), 0.01);
  watch.SetReference(Distribution{.rows = 1, .classes = {1, 0}});  // of other classes: none
  Show(watch, DriftWatch::kWindowRows, 30);
  EXPECT_LT(Psi("ink"), 0.01);
}

TEST_F(DriftWatchTest, CountsClassesConfidenceAndInk) {
  DriftWatch watch(families_, labels_, kClasses, std::nullopt);
  Show(watch, 2 * DriftWatch::kWindowRows, 51, /*classes_used=*/2);
  const auto predicted = Series(metrics_, "millrace_model_predicted_rows_total");
  EXPECT_EQ(predicted.at("0").counter.value, DriftWatch::kWindowRows);
  EXPECT_EQ(predicted.at("3").counter.value, 0);
  const auto confidence = Series(metrics_, "millrace_model_confidence").at("").histogram;
  EXPECT_EQ(confidence.sample_count, 2 * DriftWatch::kWindowRows);
  EXPECT_NEAR(confidence.sample_sum / (2 * DriftWatch::kWindowRows), 0.85, 0.03);
  EXPECT_NEAR(Series(metrics_, "millrace_model_ink").at("").histogram.sample_sum / (2 * DriftWatch::kWindowRows), 0.2,
              0.02);
  EXPECT_TRUE(Series(metrics_, "millrace_model_drift_psi").empty()) << "nothing to compare with";
}

TEST_F(DriftWatchTest, ItsSeriesGoWithIt) {
  {
    DriftWatch watch(families_, labels_, kClasses, Rows(500, 30));
    Show(watch, DriftWatch::kWindowRows, 30);
    EXPECT_EQ(Series(metrics_, "millrace_model_drift_psi").size(), 3u);
  }
  for (const char* family : {"millrace_model_predicted_rows_total", "millrace_model_confidence", "millrace_model_ink",
                             "millrace_model_drift_psi"}) {
    EXPECT_TRUE(Series(metrics_, family).empty()) << family;
  }
}

class EngineDriftTest : public EngineFixture {};

TEST_F(EngineDriftTest, EveryAnswerIsCounted) {
  PublishAndLoad(7);
  const std::vector<uint8_t> pixels(2 * kFakeShape.bytes(), 100);
  for (int i = 0; i < 3; ++i) {
    engine_.Infer(*table_.Find("mnist", 0), {.input = pixels, .rows = 2}, [](const auto&) {});
  }
  const std::vector<float> floats(kFakeShape.bytes(), 100.0f);
  engine_.Infer(*table_.Find("mnist", 0),
                {.kind = InferenceRequest::Kind::kFloats,
                 .input = {reinterpret_cast<const uint8_t*>(floats.data()), floats.size() * sizeof(float)}},
                [](const auto&) {});
  while (engine_.in_flight() > 0) std::this_thread::yield();
  EXPECT_EQ(Series(metrics_, "millrace_model_predicted_rows_total").at("3").counter.value, 7);  // 7 % kFakeClasses
  EXPECT_EQ(Series(metrics_, "millrace_model_ink").at("").histogram.sample_count, 7u);
}

}  // namespace
}  // namespace millrace
