#include "common/model/attribution.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "torch/torch.h"

namespace millrace {
namespace {

using ::testing::SizeIs;
using ::testing::HasSubstr;

// Class 0 is the mean of the left half, class 1 of the right half, of pixels from 0 to 255, as shares of 1.
at::Tensor HalvesScores(const at::Tensor& pixels) {
  const int64_t half = pixels.size(3) / 2;
  const at::Tensor left = pixels.narrow(3, 0, half).flatten(1).mean(1);
  const at::Tensor right = pixels.narrow(3, half, half).flatten(1).mean(1);
  return torch::stack({left, right}, 1) / 255;
}

at::Tensor TwoImages() {
  torch::manual_seed(7);
  at::Tensor pixels = torch::randint(1, 250, {2, 1, 6, 8}, torch::kFloat32);
  pixels[0].slice(2, 0, 4) += 5;  // so that image 0 is more of class 0, image 1 of class 1
  pixels[0].slice(2, 4, 8) *= 0.5;
  pixels[1].slice(2, 0, 4) *= 0.5;
  return pixels;
}

float At(const Explanation& explanation, int64_t y, int64_t x) {
  return explanation.map.at(static_cast<size_t>(y * 8 + x));
}

TEST(AttributionTest, IntegratedGradientsOfALinearScoreAreItsTerms) {
  const at::Tensor pixels = TwoImages();
  const auto explained = Attribute(HalvesScores, pixels, {.steps = 3});
  ASSERT_THAT(explained, IsOk());
  ASSERT_EQ(explained->size(), 2u);
  for (int64_t row = 0; row < 2; ++row) {
    const Explanation& explanation = (*explained)[static_cast<size_t>(row)];
    EXPECT_EQ(explanation.target, static_cast<uint32_t>(row)) << "the most probable class";
    EXPECT_LT(explanation.completeness_error, 1e-6f);
    EXPECT_EQ(explanation.baseline_score, 0.0f);
    for (int64_t y = 0; y < 6; ++y) {
      for (int64_t x = 0; x < 8; ++x) {
        const bool counts = (x < 4) == (row == 0);
        EXPECT_NEAR(At(explanation, y, x), counts ? pixels[row][0][y][x].item<float>() / 255 / 24 : 0, 1e-7);
      }
    }
  }
}

// A score whose gradient changes along the way: its integral is only approached.
at::Tensor CubicScores(const at::Tensor& pixels) { return (pixels.flatten(1).mean(1, true) / 255).pow(3); }

TEST(AttributionTest, CompletenessErrorShrinksWithTheSteps) {
  const at::Tensor pixels = torch::full({1, 1, 4, 4}, 200.0f);
  const float coarse = Attribute(CubicScores, pixels, {.steps = 2})->front().completeness_error;
  const float fine = Attribute(CubicScores, pixels, {.steps = 200})->front().completeness_error;
  EXPECT_GT(coarse, 1e-2f);
  EXPECT_LT(fine, 1e-5f);
}

TEST(AttributionTest, SaliencyIsTheGradientOfTheLogarithm) {
  const at::Tensor pixels = TwoImages();
  const auto explained = Attribute(HalvesScores, pixels, {.method = ExplainMethod::kSaliency, .target = 1});
  ASSERT_THAT(explained, IsOk());
  const Explanation& explanation = explained->front();
  EXPECT_EQ(explanation.target, 1u);
  EXPECT_EQ(At(explanation, 2, 1), 0);
  EXPECT_NEAR(At(explanation, 2, 5), 1.0f / 255 / 24 / explanation.score, 1e-6);
}

TEST(AttributionTest, OcclusionIsTheFallOfTheScore) {
  const at::Tensor pixels = torch::full({1, 2, 6, 8}, 255.0f);
  const auto explained =
      Attribute(HalvesScores, pixels, {.method = ExplainMethod::kOcclusion, .target = 0, .patch = 3});
  ASSERT_THAT(explained, IsOk());
  const Explanation& explanation = explained->front();
  EXPECT_NEAR(At(explanation, 2, 1), 9.0f / 24, 1e-6) << "a whole square";
  EXPECT_NEAR(At(explanation, 0, 0), 4.0f / 24, 1e-6) << "in the corner";
  EXPECT_NEAR(At(explanation, 2, 4), 3.0f / 24, 1e-6) << "a third of it reaches over";
  EXPECT_NEAR(At(explanation, 2, 6), 0, 1e-6);
}

TEST(AttributionTest, LargeImagesAreHiddenInCoarserSteps) {
  const at::Tensor pixels = torch::full({1, 1, 70, 70}, 255.0f);
  int64_t rows = 0;
  const auto counted = [&](const at::Tensor& images) {
    rows += images.size(0);
    return HalvesScores(images);
  };
  const auto explained = Attribute(counted, pixels, {.method = ExplainMethod::kOcclusion, .target = 0});
  ASSERT_THAT(explained, IsOk());
  EXPECT_LE(rows, 1024 + 3);
  EXPECT_THAT(explained->front().map, SizeIs(70 * 70));
}

TEST(AttributionTest, OptionsOutOfRangeAreNamed) {
  const at::Tensor pixels = TwoImages();
  const auto expect_refused = [&](const ExplainOptions& options, const std::string& message) {
    EXPECT_THAT(Attribute(HalvesScores, pixels, options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect_refused({.target = 2}, "target 2 is not one of 2 classes");
  expect_refused({.steps = 0}, "steps 0");
  expect_refused({.steps = 1001}, "[1, 1000]");
  expect_refused({.patch = 4}, "patch 4");
  expect_refused({.patch = 65}, "[1, 63]");
}

TEST(AttributionTest, EndsSoonWhenNobodyWaitsAnyMore) {
  const at::Tensor pixels = TwoImages();
  for (const ExplainMethod method : {ExplainMethod::kIntegratedGradients, ExplainMethod::kOcclusion}) {
    int asked = 0;
    const auto gone = [&asked] { return ++asked < 2 ? absl::OkStatus() : absl::CancelledError("the client has gone"); };
    const ExplainOptions options{.method = method, .steps = 1000, .go_on = gone};
    int64_t rows = 0;
    const auto counted = [&](const at::Tensor& images) {
      rows += images.size(0);
      return HalvesScores(images);
    };
    const at::Tensor large = torch::full({2, 1, 24, 24}, 255.0f);
    EXPECT_THAT(Attribute(counted, large, options), StatusIs(absl::StatusCode::kCancelled));
    EXPECT_LE(rows, 3 + 1 + 64);
  }
}

}  // namespace
}  // namespace millrace
