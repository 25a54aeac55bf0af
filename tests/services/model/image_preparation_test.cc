#include "services/model/image_preparation.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;

constexpr ImageShape kMnist{.channels = 1, .height = 28, .width = 28};

Image Grey(uint32_t width, uint32_t height, const std::function<int(uint32_t, uint32_t)>& level) {
  return {width, height, 1, Draw(width, height, level)};
}

struct Ink {
  int left = 28, top = 28, right = -1, bottom = -1;  // inclusive
  double centre_x = 0, centre_y = 0;                 // of mass, in pixel edges
};

Ink InkOf(const std::vector<uint8_t>& field) {
  Ink ink;
  double mass = 0;
  for (int y = 0; y < 28; ++y) {
    for (int x = 0; x < 28; ++x) {
      const double sample = field[y * 28 + x];
      mass += sample;
      ink.centre_x += sample * (x + 0.5);
      ink.centre_y += sample * (y + 0.5);
      if (sample < 64) continue;
      ink.left = std::min(ink.left, x);
      ink.right = std::max(ink.right, x);
      ink.top = std::min(ink.top, y);
      ink.bottom = std::max(ink.bottom, y);
    }
  }
  ink.centre_x /= mass;
  ink.centre_y /= mass;
  return ink;
}

TEST(PrepareImage, AnImageOfTheRightSizeOnBlackIsTakenAsItIs) {
  const Image image = Grey(28, 28, [](uint32_t x, uint32_t y) { return x > 2 && x < 9 && y > 4 && y < 20 ? 200 : 0; });
  EXPECT_THAT(*PrepareImage(image, kMnist), ElementsAreArray(image.pixels));
}

TEST(PrepareImage, ABlackImageOfTheRightSizeIsTakenAsItIs) {
  EXPECT_THAT(*PrepareImage(Grey(28, 28, [](uint32_t, uint32_t) { return 0; }), kMnist), Each(0));
}

TEST(PrepareImage, InkIsScaledIntoTheBoxAndCentredByMass) {
  // A tall bar in the corner of a large dark field.
  const Image image =
      Grey(300, 400, [](uint32_t x, uint32_t y) { return x >= 10 && x < 60 && y >= 20 && y < 220 ? 255 : 0; });
  const auto field = PrepareImage(image, kMnist);
  ASSERT_THAT(field, IsOk());
  const Ink ink = InkOf(*field);
  EXPECT_EQ(ink.bottom - ink.top + 1, 20);
  EXPECT_EQ(ink.right - ink.left + 1, 5);  // aspect kept: 20 * 50 / 200
  EXPECT_NEAR(ink.centre_x, 14, 0.5);
  EXPECT_NEAR(ink.centre_y, 14, 0.5);
}

TEST(PrepareImage, TheCentreIsThatOfMassNotOfTheBox) {
  // An L: heavy at the left and the bottom.
  const Image image = Grey(100, 100, [](uint32_t x, uint32_t y) {
    const bool inside = x >= 10 && x < 90 && y >= 10 && y < 90;
    return inside && (x < 40 || y >= 60) ? 255 : 0;
  });
  const Ink ink = InkOf(*PrepareImage(image, kMnist));
  EXPECT_NEAR(ink.centre_x, 14, 0.5);
  EXPECT_NEAR(ink.centre_y, 14, 0.5);
  EXPECT_GT((ink.left + ink.right + 1) / 2.0, 14);
  EXPECT_LT((ink.top + ink.bottom + 1) / 2.0, 14);
}

TEST(PrepareImage, ADarkDrawingOnPaperGivesWhatALightOneOnBlackGives) {
  const auto stroke = [](uint32_t x, uint32_t y) {
    return std::abs(static_cast<int>(x) - static_cast<int>(y)) < 8 && x > 20 && x < 180;
  };
  const auto light =
      PrepareImage(Grey(200, 200, [&](uint32_t x, uint32_t y) { return stroke(x, y) ? 255 : 0; }), kMnist);
  const auto dark =
      PrepareImage(Grey(200, 200, [&](uint32_t x, uint32_t y) { return stroke(x, y) ? 40 : 230; }), kMnist);
  ASSERT_THAT(light, IsOk());
  EXPECT_THAT(*dark, ElementsAreArray(*light));
}

TEST(PrepareImage, PaperGrainIsNoInk) {
  const Image image = Grey(100, 100, [](uint32_t x, uint32_t y) {
    if (x >= 45 && x < 55 && y >= 30 && y < 70) return 20;
    return 235 + static_cast<int>((x * 31 + y * 17) % 20);
  });
  const Ink ink = InkOf(*PrepareImage(image, kMnist));
  EXPECT_EQ(ink.bottom - ink.top + 1, 20);
  EXPECT_EQ(ink.right - ink.left + 1, 5);
}

TEST(PrepareImage, SmallDrawingsAreEnlarged) {
  const Image image = Grey(8, 8, [](uint32_t x, uint32_t y) { return x == 4 && y >= 2 && y < 6 ? 255 : 0; });
  const Ink ink = InkOf(*PrepareImage(image, kMnist));
  EXPECT_EQ(ink.bottom - ink.top + 1, 20);
}

TEST(PrepareImage, ShrinkingAverages) {
  // One-pixel stripes shrunk by ten are an even grey, whatever their phase.
  const Image stripes = Grey(200, 200, [](uint32_t x, uint32_t) { return x % 2 == 0 ? 255 : 0; });
  const ImageShape shape{.channels = 1, .height = 20, .width = 20};
  EXPECT_THAT(*PrepareImage(stripes, shape), Each(::testing::AllOf(::testing::Ge(127), ::testing::Le(128))));
}

TEST(PrepareImage, EmptyPicturesAreRefused) {
  EXPECT_THAT(PrepareImage(Grey(50, 50, [](uint32_t, uint32_t) { return 255; }), kMnist),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("empty")));
  EXPECT_THAT(PrepareImage(Grey(1, 1, [](uint32_t, uint32_t) { return 0; }), kMnist),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(PrepareImage, ColourModelsGetPlanes) {
  const Image image{2, 1, 3, {10, 20, 30, 40, 50, 60}};
  const ImageShape same{.channels = 3, .height = 1, .width = 2};
  EXPECT_THAT(*PrepareImage(image, same), ::testing::ElementsAre(10, 40, 20, 50, 30, 60));
  const ImageShape small{.channels = 3, .height = 1, .width = 1};
  EXPECT_THAT(*PrepareImage(image, small), ::testing::ElementsAre(25, 35, 45));
}

}  // namespace
}  // namespace millrace
