#include "services/data/synthetic.h"

#include <limits>
#include <span>
#include <string>
#include <vector>

#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/data/batches.h"
#include "services/data/dataset.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<const Samples> Draw(const std::string& text, SyntheticSplit split = SyntheticSplit::kTrain) {
  return MakeSyntheticSamples(ParseSynthetic(text).value(), split);
}

std::string DigestOf(const Samples& samples, uint64_t begin, uint64_t end) {
  Sha256 digest;
  for (uint64_t i = begin; i < end; ++i) {
    const std::vector<uint8_t> image = samples.image(i);
    digest.Update(std::as_bytes(std::span(image)));
  }
  return digest.FinishHex();
}

TEST(SyntheticTest, ParsesAndFormats) {
  EXPECT_EQ(FormatSynthetic(ParseSynthetic("synthetic").value()), "synthetic:train=60000,test=10000,seed=1,size=28");
  EXPECT_EQ(FormatSynthetic(ParseSynthetic("synthetic:size=32,seed=7,test=5,train=1000000000").value()),
            "synthetic:train=1000000000,test=5,seed=7,size=32");
  EXPECT_TRUE(IsSynthetic("synthetic:"));
  EXPECT_FALSE(IsSynthetic("synthetics"));
  EXPECT_FALSE(IsSynthetic("./synthetic"));
  for (const auto& [text, why] : {std::pair("synthetic:train=0", "train '0'"),
                                  std::pair("synthetic:size=4", "[8, 256]"), std::pair("synthetic:seed=x", "seed 'x'"),
                                  std::pair("synthetic:hue=3", "hue=3"), std::pair("synthetic:train=5,", "none of")}) {
    EXPECT_THAT(ParseSynthetic(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why))) << text;
  }
}

// Pinned: other bytes are another dataset, and the drawing's version must say so.
TEST(SyntheticTest, DrawsTheseBytes) {
  EXPECT_EQ(DigestOf(*Draw("synthetic"), 0, 20), "874b2946c3e4779febd9cd41e7e94af59c88c3dac71e9540b5ae741b51c66486");
  EXPECT_EQ(DigestOf(*Draw("synthetic:size=32,seed=7", SyntheticSplit::kTest), 0, 20),
            "e8a085725bb14142c48a04528bfc1e438adc4cfebbfd1dbfbd43f55155fdb8eb");
}

TEST(SyntheticTest, IsAFunctionOfSeedSplitAndIndexOnly) {
  const auto small = Draw("synthetic:train=100"), large = Draw("synthetic:train=1000000000");
  EXPECT_EQ(DigestOf(*small, 0, 100), DigestOf(*large, 0, 100));
  EXPECT_NE(DigestOf(*small, 0, 10), DigestOf(*small, 10, 20));
  EXPECT_NE(DigestOf(*small, 0, 10), DigestOf(*Draw("synthetic:seed=2"), 0, 10));
  EXPECT_NE(DigestOf(*small, 0, 10), DigestOf(*Draw("synthetic", SyntheticSplit::kTest), 0, 10));
  EXPECT_NE(SyntheticFingerprint(ParseSynthetic("synthetic:train=100").value()),
            SyntheticFingerprint(ParseSynthetic("synthetic").value()));
}

TEST(SyntheticTest, ABillionSamplesTakeNoMemory) {
  const auto dataset =
      Dataset::Load(FindDataset("synthetic:train=1000000000,test=3").value(), Dataset::Options{}).value();
  EXPECT_EQ(dataset->memory_bytes(), 0);
  EXPECT_EQ(dataset->train().label(999'999'999), 9);
  EXPECT_EQ(dataset->train().image(999'999'999).size(), 784);
  v1::DescribeDatasetRequest request;
  request.set_seed(4);
  request.set_validation_count(1000);
  const auto info = Describe(*dataset, request);
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 999'999'000);
  uint64_t counted = 0;
  for (const uint64_t count : info->train_class_counts()) counted += count;
  EXPECT_EQ(counted, 999'999'000);
  EXPECT_GT(info->mean(), 0.05);
  EXPECT_LT(info->mean(), 0.3);
  EXPECT_THAT(SyntheticClassCounts(13), ElementsAre(2, 2, 2, 1, 1, 1, 1, 1, 1, 1));
}

// Whatever learns digits must find something to learn: the nearest of 2,000 train images tells most test digits, and
// too few to call it trivial would be told by one image of each.
TEST(SyntheticTest, CanBeLearnt) {
  constexpr uint64_t kTrain = 2000, kTest = 200;
  const auto train = Draw("synthetic"), test = Draw("synthetic", SyntheticSplit::kTest);
  std::vector<std::vector<uint8_t>> known;
  for (uint64_t i = 0; i < kTrain; ++i) known.push_back(train->image(i));
  uint64_t right = 0;
  for (uint64_t i = 0; i < kTest; ++i) {
    const std::vector<uint8_t> asked = test->image(i);
    uint64_t nearest = 0, least = std::numeric_limits<uint64_t>::max();
    for (uint64_t candidate = 0; candidate < kTrain; ++candidate) {
      uint64_t distance = 0;
      for (size_t pixel = 0; pixel < asked.size(); ++pixel) {
        const int difference = asked[pixel] - known[candidate][pixel];
        distance += static_cast<uint64_t>(difference * difference);
      }
      if (distance < least) {
        least = distance;
        nearest = candidate;
      }
    }
    if (train->label(nearest) == test->label(i)) ++right;
  }
  EXPECT_GE(right, kTest * 9 / 10);
}

}  // namespace
}  // namespace millrace
