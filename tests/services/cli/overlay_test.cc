#include "services/cli/overlay.h"

#include <png.h>

#include <array>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::Explanation TwoPixels() {
  v1::Explanation explanation;
  explanation.set_height(1);
  explanation.set_width(2);
  explanation.set_image(std::string("\xff\x64", 2));
  explanation.add_map(0.5f);
  explanation.add_map(-0.25f);
  return explanation;
}

struct Picture {
  uint32_t width = 0, height = 0;
  std::vector<uint8_t> rgb;
  std::array<int, 3> At(uint32_t x, uint32_t y) const {
    const uint8_t* const colours = &rgb[(size_t{y} * width + x) * 3];
    return {colours[0], colours[1], colours[2]};
  }
};

Picture Decode(const std::string& png) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_NE(png_image_begin_read_from_memory(&image, png.data(), png.size()), 0);
  image.format = PNG_FORMAT_RGB;
  Picture picture{image.width, image.height, std::vector<uint8_t>(PNG_IMAGE_SIZE(image))};
  EXPECT_NE(png_image_finish_read(&image, nullptr, picture.rgb.data(), 0, nullptr), 0);
  return picture;
}

TEST(OverlayTest, RedSpeaksForTheTargetAndBlueAgainstIt) {
  const auto png = OverlayPng(TwoPixels());
  ASSERT_THAT(png, IsOk());
  const Picture picture = Decode(*png);
  EXPECT_EQ(picture.width, 20u);
  EXPECT_EQ(picture.height, 10u);
  EXPECT_THAT(picture.At(0, 9), ElementsAre(255, 0, 0)) << "the strongest, in full colour";
  EXPECT_THAT(picture.At(19, 0), ElementsAre(30, 30, 157)) << "half as strong, over the image's grey";
}

TEST(OverlayTest, AMapOfZeroesIsTheImage) {
  v1::Explanation explanation = TwoPixels();
  explanation.set_map(0, 0);
  explanation.set_map(1, 0);
  EXPECT_THAT(Decode(*OverlayPng(explanation)).At(0, 0), ElementsAre(153, 153, 153));
}

TEST(OverlayTest, WhatDoesNotGoTogetherIsRefused) {
  for (const auto& damage : std::vector<void (*)(v1::Explanation&)>{
           [](v1::Explanation& e) { e.set_height(0); }, [](v1::Explanation& e) { e.set_width(3); },
           [](v1::Explanation& e) { e.set_height(UINT32_MAX); }, [](v1::Explanation& e) { e.clear_image(); },
           [](v1::Explanation& e) { e.set_image("abc"); }, [](v1::Explanation& e) { e.add_map(0); }}) {
    v1::Explanation explanation = TwoPixels();
    damage(explanation);
    EXPECT_THAT(OverlayPng(explanation), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an explanation of")));
  }
}

}  // namespace
}  // namespace millrace
