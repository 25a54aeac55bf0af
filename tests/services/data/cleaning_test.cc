#include "services/data/cleaning.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

// An image of 2 x 2 whose first two pixels are those.
struct One {
  uint8_t first, second, label;
};

std::unique_ptr<MemorySamples> Make(const std::vector<One>& all) {
  auto images = std::make_unique<uint8_t[]>(all.size() * 4);
  auto labels = std::make_unique<uint8_t[]>(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    images[4 * i] = all[i].first;
    images[4 * i + 1] = all[i].second;
    labels[i] = all[i].label;
  }
  return std::make_unique<MemorySamples>(ImageShape{1, 2, 2}, all.size(), std::move(images), std::move(labels));
}

std::vector<int> FirstPixels(const MemorySamples& samples) {
  std::vector<int> pixels;
  for (uint64_t i = 0; i < samples.count(); ++i) pixels.push_back(samples.pixels(i)[0]);
  return pixels;
}

// One of each fault.
class CleaningTest : public testing::Test {
 protected:
  absl::StatusOr<CleaningReport> Run(const std::string& policy) {
    return Clean(*train_, *test_, 3, ParseCleanPolicy(policy).value());
  }

  const std::unique_ptr<MemorySamples> train_ = Make({{1, 9, 0},    // 0: fine
                                                      {2, 9, 1},    // 1: said again by 4
                                                      {3, 9, 7},    // 2: no class
                                                      {0, 0, 1},    // 3: all black
                                                      {2, 9, 1},    // 4
                                                      {5, 9, 0},    // 5: 6 says otherwise
                                                      {5, 9, 2},    // 6
                                                      {7, 9, 2},    // 7: asked in the test
                                                      {8, 9, 2}});  // 8: fine
  const std::unique_ptr<MemorySamples> test_ = Make({{7, 9, 2}, {10, 9, 0}, {10, 9, 0}});
};

TEST_F(CleaningTest, FindsEachFault) {
  const auto report = Run("drop");
  ASSERT_THAT(report, IsOk());
  const auto counts = [&](Fault fault) { return std::pair(report->of(fault).train, report->of(fault).test); };
  EXPECT_EQ(counts(Fault::kBadLabel), std::pair(1ul, 0ul));
  EXPECT_EQ(counts(Fault::kConstant), std::pair(1ul, 0ul));
  EXPECT_EQ(counts(Fault::kConflict), std::pair(2ul, 0ul));
  EXPECT_EQ(counts(Fault::kDuplicate), std::pair(1ul, 1ul));
  EXPECT_EQ(counts(Fault::kLeak), std::pair(1ul, 0ul));
  EXPECT_THAT(report->of(Fault::kDuplicate).examples,
              UnorderedElementsAre("train sample 4 equals train sample 1", "test sample 2 equals test sample 1"));
}

TEST_F(CleaningTest, DropTakesThemOutAndKeepsTheOrder) {
  const auto report = Run("drop");
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(FirstPixels(*train_), ElementsAre(1, 2, 8));
  EXPECT_THAT(train_->labels(), ElementsAre(0, 1, 2));
  EXPECT_THAT(FirstPixels(*test_), ElementsAre(7, 10));
  EXPECT_EQ(report->dropped_train, 6);
  EXPECT_EQ(report->dropped_test, 1);
  EXPECT_THAT(report->train_class_counts, ElementsAre(1, 1, 1));
  EXPECT_THAT(report->test_class_counts, ElementsAre(1, 0, 1));
  EXPECT_THAT(report->ToString(), AllOf(HasSubstr("images of one colour"), HasSubstr("dropped")));
}

TEST_F(CleaningTest, KeepLeavesAll) {
  const auto report = Run("keep,labels=drop");
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(FirstPixels(*train_), ElementsAre(1, 2, 0, 2, 5, 5, 7, 8));
  EXPECT_EQ(test_->count(), 3);
  EXPECT_EQ(report->of(Fault::kLeak).train, 1);
  EXPECT_THAT(report->ToString(), HasSubstr("kept"));
}

TEST_F(CleaningTest, RefuseNamesTheFaultAndTheFlag) {
  EXPECT_THAT(
      Run("drop,duplicates=refuse"),
      StatusIs(kDataLoss, AllOf(HasSubstr("train sample 4 equals train sample 1"), HasSubstr("duplicates=drop"))));
  EXPECT_EQ(train_->count(), 9) << "a refused dataset is left as it is";
  EXPECT_THAT(Run("keep,labels=refuse"), StatusIs(kDataLoss, HasSubstr("label 7 of train sample 2")));
  // No network has an output for it.
  EXPECT_THAT(Run("keep"), StatusIs(kDataLoss, HasSubstr("label 7 of train sample 2")));
}

TEST(CleanTest, EveryCopyOfAContestedImageIsInConflict) {
  const auto train = Make({{1, 9, 0}, {1, 9, 0}, {1, 9, 1}, {2, 9, 1}});
  const auto test = Make({{3, 9, 1}});
  const auto report = Clean(*train, *test, 2, ParseCleanPolicy("keep,conflicts=drop").value());
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(FirstPixels(*train), ElementsAre(2));
}

// A damaged file may say one thing a hundred thousand times: that must not take the square of its time.
TEST(CleanTest, ManyCopiesOfOneImage) {
  const auto train = Make(std::vector<One>(200'000, {1, 9, 0}));
  const auto test = Make({{3, 9, 1}});
  const auto report = Clean(*train, *test, 2, CleanPolicy());
  ASSERT_THAT(report, IsOk());
  EXPECT_EQ(report->of(Fault::kDuplicate).train, 199'999);
  EXPECT_EQ(report->of(Fault::kDuplicate).examples.size(), 5);
}

TEST(CleanTest, NothingFoundAndNothingLeft) {
  const auto train = Make({{1, 9, 0}, {2, 9, 1}});
  const auto test = Make({{3, 9, 1}});
  EXPECT_EQ(Clean(*train, *test, 2, CleanPolicy())->ToString(), "  nothing found\n");
  const auto same = Make({{1, 9, 0}, {2, 9, 1}});
  EXPECT_THAT(Clean(*train, *same, 2, ParseCleanPolicy("drop").value()),
              StatusIs(kDataLoss, HasSubstr("nothing is left to train on")));
}

TEST(CleanPolicyTest, ParsesAndNamesWhatItCannot) {
  const CleanPolicy policy = ParseCleanPolicy("drop,leaks=keep,labels=refuse").value();
  EXPECT_EQ(policy.of(Fault::kDuplicate), CleanAction::kDrop);
  EXPECT_EQ(policy.of(Fault::kLeak), CleanAction::kKeep);
  EXPECT_EQ(policy.of(Fault::kBadLabel), CleanAction::kRefuse);
  for (const char* const bad : {"", "burn", "leaks", "leaks=burn", "ghosts=drop", "drop,,keep", "leaks=drop=keep"}) {
    EXPECT_THAT(ParseCleanPolicy(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is neither"))) << bad;
  }
}

TEST(DeriveClassesTest, EndsWhereALabelIsMissing) {
  const auto derive = [](std::vector<uint8_t> labels, const std::string& policy = "drop") {
    std::vector<One> all;
    for (const uint8_t label : labels) all.push_back({1, 2, label});
    return DeriveClasses(*Make(all), ParseCleanPolicy(policy).value());
  };
  EXPECT_EQ(derive({0, 1, 2, 1}), 3);
  EXPECT_EQ(derive({1, 2, 3}), 4) << "some count from 1";
  EXPECT_EQ(derive({0, 1, 2, 200}), 3);
  EXPECT_EQ(derive({0, 1, 2, 200}, "keep"), 201);
  EXPECT_EQ(derive({0, 0}), 0);
}

}  // namespace
}  // namespace millrace
