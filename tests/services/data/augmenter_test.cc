#include "services/data/augmenter.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rapidcheck/gtest.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr ImageShape kDigit = {1, 28, 28};

v1::Augmentation Strengths(double shift, double rotate, double scale, double elastic) {
  v1::Augmentation augmentation;
  augmentation.set_shift(shift);
  augmentation.set_rotate(rotate);
  augmentation.set_scale(scale);
  augmentation.set_elastic(elastic);
  return augmentation;
}

// Edges, slopes and corners, different in every channel.
std::vector<uint8_t> TestImage(const ImageShape& shape) {
  std::vector<uint8_t> image;
  for (uint32_t c = 0; c < shape.channels; ++c) {
    for (uint32_t y = 0; y < shape.height; ++y) {
      for (uint32_t x = 0; x < shape.width; ++x) {
        image.push_back((x * y + c) % 3 == 0 ? 255 : static_cast<uint8_t>(x * 7 + y * 13 + c * 29));
      }
    }
  }
  return image;
}

std::vector<uint8_t> Distorted(const v1::Augmentation& strengths, uint64_t seed, uint64_t epoch, uint64_t sample,
                               const ImageShape& shape, std::vector<uint8_t> image) {
  const Augmenter augmenter = Augmenter::Create(strengths, seed, shape).value();
  EpochAugmenter(augmenter, epoch).Distort(sample, image);
  return image;
}

std::vector<uint8_t> Distorted(const v1::Augmentation& strengths, uint64_t seed, uint64_t epoch, uint64_t sample,
                               const ImageShape& shape = kDigit) {
  return Distorted(strengths, seed, epoch, sample, shape, TestImage(shape));
}

// The first digits of the image's SHA-256.
std::string Digest(const std::vector<uint8_t>& image) {
  return Sha256Hex(std::as_bytes(std::span(image))).substr(0, 16);
}

// From a second implementation of the header's specification, in another language.
TEST(AugmenterTest, HasTheSpecifiedValues) {
  const v1::Augmentation shift = Strengths(2.5, 0, 0, 0), rotate = Strengths(0, 25, 0, 0);
  const v1::Augmentation scale = Strengths(0, 0, 0.25, 0), elastic = Strengths(0, 0, 0, 4);
  const v1::Augmentation all = Strengths(2, 10, 0.1, 3);
  constexpr uint64_t kSeed = (uint64_t{1} << 40) + 5, kEpoch = (uint64_t{1} << 33) + 1,
                     kSample = (uint64_t{1} << 35) + 2;  // all words of them count
  EXPECT_EQ(Digest(Distorted(shift, 1, 0, 0)), "175623fb4e1c8122");
  EXPECT_EQ(Digest(Distorted(rotate, 7, 3, 41)), "8e523ce08c121402");
  EXPECT_EQ(Digest(Distorted(scale, 7, 3, 41)), "40013ba91f0e00f4");
  EXPECT_EQ(Digest(Distorted(elastic, 7, 3, 41)), "2e872b3e32d1e9f8");
  EXPECT_EQ(Digest(Distorted(all, kSeed, kEpoch, kSample)), "e574057450ccc2a2");

  constexpr ImageShape kColour = {3, 32, 32}, kOdd = {1, 5, 9};
  EXPECT_EQ(Digest(Distorted(shift, 1, 0, 0, kColour)), "e1e88f76d7a60b88");
  EXPECT_EQ(Digest(Distorted(elastic, 7, 3, 41, kColour)), "ba6410a80e70adf8");
  EXPECT_EQ(Digest(Distorted(all, kSeed, kEpoch, kSample, kColour)), "b6620fae7c8ff7df");
  EXPECT_EQ(Digest(Distorted(rotate, 7, 3, 41, kOdd)), "9a2472e9c50fc9cd");
  EXPECT_EQ(Digest(Distorted(all, kSeed, kEpoch, kSample, kOdd)), "02fde9a2fefc2aec");
}

// What came before on the same work space, and in which batch an image is, must not show.
RC_GTEST_PROP(AugmenterTest, DependsOnNothingElse, ()) {
  const ImageShape shape = {*rc::gen::inRange<uint32_t>(1, 4), *rc::gen::inRange<uint32_t>(1, 40),
                            *rc::gen::inRange<uint32_t>(1, 40)};
  const v1::Augmentation strengths = Strengths(*rc::gen::inRange(0, 65), *rc::gen::inRange(0, 181),
                                               *rc::gen::inRange(0, 10) * 0.1, *rc::gen::inRange(0, 33));
  const auto seed = *rc::gen::arbitrary<uint64_t>(), epoch = *rc::gen::arbitrary<uint64_t>();
  const Augmenter augmenter = Augmenter::Create(strengths, seed, shape).value();
  EpochAugmenter at_work(augmenter, epoch);
  for (int i = 0; i < 5; ++i) {
    const auto sample = *rc::gen::arbitrary<uint64_t>();
    std::vector<uint8_t> image(shape.bytes());
    for (uint8_t& pixel : image) pixel = *rc::gen::arbitrary<uint8_t>();
    std::vector<uint8_t> distorted = image;
    at_work.Distort(sample, distorted);
    RC_ASSERT(distorted == Distorted(strengths, seed, epoch, sample, shape, image));
  }
}

TEST(AugmenterTest, NothingAskedForNothingDone) {
  for (const ImageShape& shape : {kDigit, ImageShape{3, 7, 4}, ImageShape{1, 1, 1}, ImageShape{1, 1, 300}}) {
    EXPECT_EQ(Distorted(Strengths(0, 0, 0, 0), 1, 2, 3, shape), TestImage(shape));
  }
}

TEST(AugmenterTest, AnotherSampleEpochOrSeedIsAnotherDistortion) {
  for (const v1::Augmentation& one :
       {Strengths(2, 0, 0, 0), Strengths(0, 20, 0, 0), Strengths(0, 0, 0.2, 0), Strengths(0, 0, 0, 4)}) {
    const std::vector<uint8_t> image = Distorted(one, 1, 2, 3);
    EXPECT_NE(image, TestImage(kDigit));
    EXPECT_NE(image, Distorted(one, 1, 2, 4));
    EXPECT_NE(image, Distorted(one, 1, 3, 3));
    EXPECT_NE(image, Distorted(one, 2, 2, 3));
  }
}

// On a slope the value of a pixel says where it came from.
TEST(AugmenterTest, NothingMovesFartherThanItsStrength) {
  constexpr int kSlope = 8;
  std::vector<uint8_t> slope;
  for (int i = 0; i < 28 * 28; ++i) slope.push_back(static_cast<uint8_t>(i % 28 * kSlope));
  const auto largest_move = [&](const v1::Augmentation& strengths, int margin) {
    int largest = 0;
    for (uint64_t sample = 0; sample < 300; ++sample) {
      const std::vector<uint8_t> moved = Distorted(strengths, 5, 0, sample, kDigit, slope);
      for (int y = margin; y < 28 - margin; ++y) {
        for (int x = margin; x < 28 - margin; ++x) {
          largest = std::max(largest, std::abs(moved[y * 28 + x] - slope[y * 28 + x]));
        }
      }
    }
    return largest;
  };
  EXPECT_LE(largest_move(Strengths(3, 0, 0, 0), 4), 3 * kSlope + 1);
  EXPECT_GE(largest_move(Strengths(3, 0, 0, 0), 4), 3 * kSlope - 2);  // and uses its room
  EXPECT_LE(largest_move(Strengths(0, 0, 0, 5), 6), 5 * kSlope + 1);
  EXPECT_GE(largest_move(Strengths(0, 0, 0, 5), 6), 2 * kSlope);
  EXPECT_LE(largest_move(Strengths(0, 0, 0.2, 0), 4), 2 * kSlope + 1);  // 9.5 pixels from the middle
  EXPECT_GE(largest_move(Strengths(0, 0, 0.2, 0), 4), kSlope);
}

// An elastic deformation pulls neighbours along with each other.
TEST(AugmenterTest, BendsSmoothly) {
  constexpr int kSlope = 8;
  std::vector<uint8_t> slope;
  for (int i = 0; i < 28 * 28; ++i) slope.push_back(static_cast<uint8_t>(i % 28 * kSlope));
  for (uint64_t sample = 0; sample < 100; ++sample) {
    const std::vector<uint8_t> bent = Distorted(Strengths(0, 0, 0, 3), 5, 0, sample, kDigit, slope);
    for (int y = 5; y < 22; ++y) {
      for (int x = 5; x < 22; ++x) {
        ASSERT_LE(std::abs(bent[(y + 1) * 28 + x] - bent[y * 28 + x]), kSlope);
        ASSERT_LE(std::abs(bent[y * 28 + x + 1] - bent[y * 28 + x] - kSlope), kSlope);
      }
    }
  }
}

TEST(AugmenterTest, TurnsAboutTheMiddle) {
  // A cross through the middle, turned by any angle, still has its middle.
  std::vector<uint8_t> cross(29 * 29);
  for (int i = 0; i < 29; ++i) {
    for (const int j : {13, 14, 15}) cross[i * 29 + j] = cross[j * 29 + i] = 255;
  }
  bool turned = false;
  for (uint64_t sample = 0; sample < 100; ++sample) {
    const std::vector<uint8_t> image = Distorted(Strengths(0, 180, 0, 0), 5, 0, sample, {1, 29, 29}, cross);
    EXPECT_EQ(image[14 * 29 + 14], 255);
    turned |= image[14 * 29 + 3] == 0;
  }
  EXPECT_TRUE(turned);
}

TEST(AugmenterTest, RefusesWhatItCannotDo) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(Augmenter::Create(Strengths(65, 0, 0, 0), 1, kDigit), StatusIs(kInvalid, HasSubstr("shift 65")));
  EXPECT_THAT(Augmenter::Create(Strengths(1, 0, 0, 0), 1, {1, 28, 4097}), StatusIs(kInvalid, HasSubstr("28x4097")));
  EXPECT_THAT(Augmenter::Create(Strengths(64, 180, 0.9, 32), 1, {1, 4096, 4096}), IsOk());
}

// The farthest that coordinates can go, under the sanitizers too.
TEST(AugmenterTest, LargestImageAndStrengths) {
  const ImageShape shape = {1, 2, 4096};
  for (uint64_t sample = 0; sample < 200; ++sample) (void)Distorted(Strengths(64, 180, 0.9, 32), 1, 0, sample, shape);
  const ImageShape tall = {1, 4096, 2};
  for (uint64_t sample = 0; sample < 200; ++sample) (void)Distorted(Strengths(64, 180, 0.9, 32), 1, 0, sample, tall);
}

}  // namespace
}  // namespace millrace
