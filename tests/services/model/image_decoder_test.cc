#include "services/model/image_decoder.h"

#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/model/test_images.h"
#include "tests/testing/status_matchers.h"
#include "zlib.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

int Gradient(uint32_t x, uint32_t y) { return static_cast<int>((x * 7 + y * 3) % 256); }

// Sets a PNG header's sides and makes its checksum right again.
void SetPngSides(Bytes& png, uint32_t width, uint32_t height) {
  const auto put = [&](size_t at, uint32_t value) {
    for (int i = 0; i < 4; ++i) png[at + i] = static_cast<uint8_t>(value >> (24 - 8 * i));
  };
  put(16, width);
  put(20, height);
  put(29, crc32(0, &png[12], 17));
}

TEST(DecodePng, GreyKeepsEverySample) {
  const Bytes samples = Draw(28, 28, Gradient);
  const auto image = DecodeImage(EncodePng(28, 28, PNG_FORMAT_GRAY, samples.data()), 1);
  ASSERT_THAT(image, IsOk());
  EXPECT_EQ(image->width, 28u);
  EXPECT_EQ(image->height, 28u);
  EXPECT_THAT(image->pixels, ElementsAreArray(samples));
}

TEST(DecodePng, ColourBecomesLumaOrStaysColour) {
  const Bytes rgb = {255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255};
  const Bytes png = EncodePng(2, 2, PNG_FORMAT_RGB, rgb.data());
  EXPECT_THAT(DecodeImage(png, 3)->pixels, ElementsAreArray(rgb));
  EXPECT_THAT(DecodeImage(png, 1)->pixels, ElementsAre(77, 149, 29, 255));
}

TEST(DecodePng, PaletteIsExpanded) {
  const Bytes palette = {0, 0, 0, 255, 255, 255, 255, 0, 0};
  const Bytes indices = {0, 1, 2, 1};
  const Bytes png = EncodePng(2, 2, PNG_FORMAT_RGB_COLORMAP, indices.data(), palette.data(), 3);
  EXPECT_THAT(DecodeImage(png, 3)->pixels, ElementsAre(0, 0, 0, 255, 255, 255, 255, 0, 0, 255, 255, 255));
}

TEST(DecodePng, SixteenBitsAreReduced) {
  const uint16_t samples[] = {0, 65535, 65535, 0};
  const auto image = DecodeImage(EncodePng(2, 2, PNG_FORMAT_LINEAR_Y, samples), 1);
  ASSERT_THAT(image, IsOk());
  EXPECT_THAT(image->pixels, ElementsAre(0, 255, 255, 0));
}

TEST(DecodePng, TransparentGroundContrastsWithTheDrawing) {
  const Bytes black_ink = {0, 255, 0, 0};  // grey, alpha: one black pixel beside a transparent one
  EXPECT_THAT(DecodeImage(EncodePng(2, 1, PNG_FORMAT_GA, black_ink.data()), 1)->pixels, ElementsAre(0, 255));
  const Bytes white_ink = {255, 255, 255, 255, 0, 0, 0, 0};
  EXPECT_THAT(DecodeImage(EncodePng(2, 1, PNG_FORMAT_RGBA, white_ink.data()), 1)->pixels, ElementsAre(255, 0));
}

TEST(DecodePng, EveryTruncationIsRefused) {
  const Bytes samples = Draw(28, 28, Gradient);
  const Bytes png = EncodePng(28, 28, PNG_FORMAT_GRAY, samples.data());
  for (size_t size = 0; size < png.size(); ++size) {
    ASSERT_THAT(DecodeImage(std::span(png).first(size), 1), StatusIs(kInvalid)) << size << " of " << png.size();
  }
}

TEST(DecodePng, EveryFlippedBitIsRefused) {
  const Bytes samples = Draw(9, 9, Gradient);
  Bytes png = EncodePng(9, 9, PNG_FORMAT_GRAY, samples.data());
  for (size_t bit = 0; bit < png.size() * 8; ++bit) {
    png[bit / 8] ^= 1 << bit % 8;
    ASSERT_THAT(DecodeImage(png, 1), StatusIs(kInvalid)) << "bit " << bit;
    png[bit / 8] ^= 1 << bit % 8;
  }
}

TEST(DecodePng, SidesAreCheckedBeforeAnythingIsAllocated) {
  const Bytes samples = Draw(8, 8, Gradient);
  Bytes png = EncodePng(8, 8, PNG_FORMAT_GRAY, samples.data());
  SetPngSides(png, 0x7fffffff, 0x7fffffff);
  EXPECT_THAT(DecodeImage(png, 1), StatusIs(kInvalid, HasSubstr("over the limit of 4096 x 4096")));
  SetPngSides(png, 4097, 1);
  EXPECT_THAT(DecodeImage(png, 1), StatusIs(kInvalid, HasSubstr("4097 x 1")));
  SetPngSides(png, 0, 8);
  EXPECT_THAT(DecodeImage(png, 1), StatusIs(kInvalid));
  SetPngSides(png, 8, 4096);  // within the limit, but the data ends long before
  EXPECT_THAT(DecodeImage(png, 1), StatusIs(kInvalid, HasSubstr("corrupt PNG")));
}

TEST(DecodeJpeg, GreyAndColour) {
  const Bytes grey = Draw(40, 24, [](uint32_t x, uint32_t) { return x < 20 ? 0 : 255; });
  const auto image = DecodeImage(EncodeJpeg(40, 24, 1, grey.data()), 1);
  ASSERT_THAT(image, IsOk());
  EXPECT_EQ(image->width, 40u);
  EXPECT_EQ(image->height, 24u);
  EXPECT_LT(image->pixels[0], 10);
  EXPECT_GT(image->pixels[39], 245);

  Bytes red(16 * 16 * 3, 0);
  for (size_t i = 0; i < red.size(); i += 3) red[i] = 255;
  for (const bool progressive : {false, true}) {
    const Bytes jpeg = EncodeJpeg(16, 16, 3, red.data(), progressive);
    const auto colour = DecodeImage(jpeg, 3);
    ASSERT_THAT(colour, IsOk());
    EXPECT_GT(colour->pixels[0], 245);
    EXPECT_LT(colour->pixels[1], 10);
    EXPECT_NEAR(DecodeImage(jpeg, 1)->pixels[0], 76, 4);
  }
}

TEST(DecodeJpeg, EveryTruncationIsRefused) {
  const Bytes samples = Draw(33, 33, Gradient);
  for (const bool progressive : {false, true}) {
    const Bytes jpeg = EncodeJpeg(33, 33, 1, samples.data(), progressive);
    for (size_t size = 0; size < jpeg.size(); ++size) {
      ASSERT_THAT(DecodeImage(std::span(jpeg).first(size), 1), StatusIs(kInvalid)) << size << " of " << jpeg.size();
    }
  }
}

// JPEG has no checksums, so a flipped bit may pass as another picture; it must never do anything worse.
TEST(DecodeJpeg, FlippedBitsDoNoHarm) {
  const Bytes samples = Draw(17, 17, Gradient);
  for (const bool progressive : {false, true}) {
    Bytes jpeg = EncodeJpeg(17, 17, 1, samples.data(), progressive);
    for (size_t bit = 0; bit < jpeg.size() * 8; ++bit) {
      jpeg[bit / 8] ^= 1 << bit % 8;
      const auto image = DecodeImage(jpeg, 1);
      if (image.ok()) {
        ASSERT_EQ(image->pixels.size(), size_t{image->width} * image->height);
      } else {
        ASSERT_THAT(image, StatusIs(kInvalid)) << "bit " << bit;
      }
      jpeg[bit / 8] ^= 1 << bit % 8;
    }
  }
}

TEST(DecodeJpeg, HugeSidesAndFourColoursAreRefused) {
  const Bytes samples = Draw(8, 8, Gradient);
  Bytes jpeg = EncodeJpeg(8, 8, 1, samples.data());
  const Bytes frame = {0xff, 0xc0};
  const auto sof = std::search(jpeg.begin(), jpeg.end(), frame.begin(), frame.end());
  ASSERT_NE(sof, jpeg.end());
  std::fill(sof + 5, sof + 9, 0xff);  // height and width: 65535
  EXPECT_THAT(DecodeImage(jpeg, 1), StatusIs(kInvalid));
  std::fill(sof + 5, sof + 9, 0x10);  // 4112
  EXPECT_THAT(DecodeImage(jpeg, 1), StatusIs(kInvalid, HasSubstr("4112 x 4112")));

  const Bytes cmyk(8 * 8 * 4, 100);
  EXPECT_THAT(DecodeImage(EncodeJpeg(8, 8, 4, cmyk.data()), 1), StatusIs(kInvalid, HasSubstr("4 colour components")));
}

TEST(DecodeImage, OtherBytesAreRefused) {
  EXPECT_THAT(DecodeImage({}, 1), StatusIs(kInvalid, HasSubstr("empty")));
  const std::string gif = "GIF89a..............";
  EXPECT_THAT(DecodeImage({reinterpret_cast<const uint8_t*>(gif.data()), gif.size()}, 1),
              StatusIs(kInvalid, HasSubstr("neither PNG nor JPEG")));
  EXPECT_THAT(DecodeImage(Bytes(kEncodedImageBytesMax + 1), 1), StatusIs(kInvalid, HasSubstr("over the limit")));
  EXPECT_THAT(DecodeImage(Bytes(10), 4), StatusIs(kInvalid, HasSubstr("4 channels")));
}

}  // namespace
}  // namespace millrace
