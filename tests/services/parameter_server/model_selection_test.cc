#include "services/parameter_server/model_selection.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// One epoch after the other; the accuracy tells the opposite of the loss, to see which of them counts.
std::vector<v1::Evaluation> History(const std::vector<double>& losses) {
  std::vector<v1::Evaluation> history;
  for (const double loss : losses) {
    v1::Evaluation& evaluation = history.emplace_back();
    evaluation.set_epoch(history.size());
    evaluation.set_version(10 * history.size());
    evaluation.set_loss(loss);
    evaluation.set_accuracy(loss / 10);
  }
  return history;
}

v1::JobSpec Stopping(uint32_t patience, double min_delta = 0) {
  v1::JobSpec spec;
  spec.mutable_early_stopping()->set_patience(patience);
  spec.mutable_early_stopping()->set_min_delta(min_delta);
  return spec;
}

// The epoch after which a job with these losses ends; 0 if it never does.
size_t StopEpoch(const v1::JobSpec& spec, const std::vector<double>& losses) {
  const auto history = History(losses);
  for (size_t epoch = 1; epoch <= history.size(); ++epoch) {
    if (StopsAfter(spec, std::span(history).first(epoch))) return epoch;
  }
  return 0;
}

TEST(BestOfTest, IsTheFirstOfTheSmallestLosses) {
  const auto history = History({3, 1, 2, 1, 5});
  EXPECT_EQ(BestOf({}, history)->epoch(), 2u);
  EXPECT_EQ(BestOf({}, {}), nullptr);
  v1::JobSpec by_accuracy;
  by_accuracy.set_best_by(v1::BEST_BY_ACCURACY);
  EXPECT_EQ(BestOf(by_accuracy, history)->epoch(), 5u);
}

TEST(BestOfTest, WhatIsNoNumberIsNeverTheBest) {
  EXPECT_EQ(BestOf({}, History({kNaN, 2, kNaN, 3}))->epoch(), 2u);
  EXPECT_EQ(BestOf({}, History({kNaN, kNaN})), nullptr);
}

TEST(StopsAfterTest, StopsWhenPatienceIsUsedUp) {
  const std::vector<double> losses = {5, 4, 4, 4.5, 3, 6, 6, 6, 6};
  EXPECT_EQ(StopEpoch(Stopping(0), losses), 0u);
  EXPECT_EQ(StopEpoch(Stopping(1), losses), 3u) << "as good is not better";
  EXPECT_EQ(StopEpoch(Stopping(2), losses), 4u);
  EXPECT_EQ(StopEpoch(Stopping(3), losses), 8u) << "an improvement starts the count anew";
  EXPECT_EQ(StopEpoch(Stopping(4), losses), 9u);
  EXPECT_EQ(StopEpoch(Stopping(5), losses), 0u);
}

TEST(StopsAfterTest, SmallImprovementsLeaveTheMarkWhereItWas) {
  EXPECT_EQ(StopEpoch(Stopping(2, 0.5), {5, 4.8, 4.6, 4.4}), 3u);
  EXPECT_EQ(StopEpoch(Stopping(3, 0.5), {5, 4.8, 4.6, 4.4}), 0u) << "together they are enough";
}

TEST(StopsAfterTest, GoesByTheSameMeasureAsTheBest) {
  v1::JobSpec spec = Stopping(2);
  spec.set_best_by(v1::BEST_BY_ACCURACY);
  EXPECT_EQ(StopEpoch(spec, {3, 4, 5, 6}), 0u);
  EXPECT_EQ(StopEpoch(spec, {6, 5, 4, 3}), 3u);
}

TEST(StopsAfterTest, ADivergedJobStopsToo) { EXPECT_EQ(StopEpoch(Stopping(2), {1, kNaN, kNaN, kNaN}), 3u); }

}  // namespace
}  // namespace millrace
