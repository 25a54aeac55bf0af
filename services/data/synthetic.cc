#include "services/data/synthetic.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"
#include "common/random.h"
#include "services/data/augmenter.h"

namespace millrace {
namespace {

constexpr absl::string_view kName = "synthetic";
constexpr int kVersion = 1;  // of the drawing: another one is another dataset
constexpr uint32_t kClasses = 10;
constexpr uint32_t kHands = 2;
constexpr uint32_t kPens = 3;
constexpr uint32_t kSizeMin = 8, kSizeMax = 256;

constexpr uint32_t kTag = 0x73796e74;                        // apart from every other use of a seed
constexpr uint64_t kFirstEpoch = uint64_t{1} << 63;          // that no job reaches
constexpr uint32_t kDarkest = 160;                           // of the brightest pixel, of 255
constexpr std::array<int64_t, kPens> kPenRadii = {3, 4, 5};  // percent of the image's side

// In percent of the image's side, from its upper left corner.
struct Point {
  int x, y;
};
using Stroke = std::vector<Point>;

// Twenty drawings: by digit, then by hand.
const std::vector<Stroke>& Drawing(uint32_t digit, uint32_t hand) {
  static const std::array<std::array<std::vector<Stroke>, kHands>, kClasses> drawings = {{
      {{{{{50, 22},
          {39, 27},
          {33, 40},
          {33, 60},
          {39, 73},
          {50, 78},
          {61, 73},
          {67, 60},
          {67, 40},
          {61, 27},
          {50, 22}}},
        {{{58, 22},
          {44, 26},
          {35, 40},
          {31, 58},
          {35, 72},
          {45, 77},
          {57, 72},
          {66, 57},
          {69, 40},
          {66, 28},
          {58, 22}}}}},
      {{{{{50, 22}, {50, 78}}}, {{{39, 35}, {53, 22}, {53, 78}}, {{40, 78}, {66, 78}}}}},
      {{{{{34, 34}, {40, 25}, {51, 22}, {62, 26}, {66, 36}, {61, 48}, {33, 78}, {68, 78}}},
        {{{35, 30},
          {46, 22},
          {59, 24},
          {64, 35},
          {57, 50},
          {44, 66},
          {34, 71},
          {37, 78},
          {46, 73},
          {58, 76},
          {69, 72}}}}},
      {{{{{34, 27}, {47, 22}, {60, 25}, {65, 36}, {59, 46}, {47, 49}},
         {{47, 49}, {62, 53}, {67, 64}, {60, 75}, {46, 78}, {33, 72}}},
        {{{34, 23}, {65, 23}, {48, 44}, {61, 48}, {67, 60}, {61, 73}, {47, 78}, {34, 73}}}}},
      {{{{{57, 78}, {57, 22}, {32, 60}, {70, 60}}}, {{{38, 22}, {34, 50}, {66, 50}}, {{64, 24}, {62, 78}}}}},
      {{{{{65, 23}, {38, 23}, {36, 46}, {50, 42}, {63, 48}, {67, 60}, {61, 73}, {47, 78}, {33, 72}}},
        {{{40, 24}, {36, 45}, {52, 44}, {62, 53}, {61, 67}, {49, 77}, {34, 76}}, {{40, 24}, {67, 21}}}}},
      {{{{{61, 23},
          {46, 32},
          {36, 48},
          {33, 62},
          {39, 74},
          {50, 78},
          {62, 73},
          {66, 62},
          {60, 51},
          {49, 48},
          {37, 55}}},
        {{{45, 21}, {37, 42}, {35, 64}, {44, 77}, {59, 74}, {63, 62}, {55, 54}, {42, 59}, {36, 67}}}}},
      {{{{{33, 23}, {68, 23}, {46, 78}}}, {{{32, 27}, {43, 23}, {67, 24}, {55, 48}, {50, 78}}, {{41, 51}, {65, 49}}}}},
      {{{{{50, 22},
          {39, 26},
          {36, 36},
          {41, 45},
          {50, 49},
          {62, 55},
          {66, 65},
          {60, 75},
          {50, 78},
          {40, 75},
          {34, 65},
          {38, 55},
          {50, 49},
          {59, 45},
          {64, 36},
          {61, 26},
          {50, 22}}},
        {{{64, 28},
          {52, 22},
          {40, 27},
          {41, 40},
          {58, 57},
          {61, 70},
          {50, 78},
          {38, 71},
          {41, 58},
          {61, 40},
          {64, 28}}}}},
      {{{{{63, 45},
          {51, 52},
          {39, 48},
          {34, 38},
          {40, 26},
          {51, 22},
          {61, 27},
          {66, 39},
          {63, 57},
          {54, 70},
          {40, 78}}},
        {{{62, 26}, {48, 22}, {37, 31}, {38, 44}, {49, 49}, {61, 42}, {63, 26}, {60, 78}}}}},
  }};
  return drawings[digit][hand];
}

// The whole part of the root.
int64_t SquareRoot(int64_t value) {
  auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(value)));  // exact or off by one
  while (root * root > value) --root;
  while ((root + 1) * (root + 1) <= value) ++root;
  return root;
}

// From (x, y) to the line between the ends, squared; all in 256ths of a pixel.
int64_t SquaredDistance(int64_t x, int64_t y, int64_t x0, int64_t y0, int64_t x1, int64_t y1) {
  const int64_t along_x = x1 - x0, along_y = y1 - y0;
  const int64_t length = along_x * along_x + along_y * along_y;
  const int64_t t = std::clamp<int64_t>((x - x0) * along_x + (y - y0) * along_y, 0, length);
  const int64_t near_x = length == 0 ? 0 : along_x * t / length, near_y = length == 0 ? 0 : along_y * t / length;
  const int64_t dx = x - x0 - near_x, dy = y - y0 - near_y;
  return dx * dx + dy * dy;
}

std::vector<uint8_t> Rasterise(const std::vector<Stroke>& strokes, int64_t pen_radius, int64_t size) {
  const auto scaled = [size](int64_t percent) { return percent * size * 256 / 100; };
  const int64_t radius = scaled(pen_radius);
  std::vector<uint8_t> image(static_cast<size_t>(size * size));
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = 0; column < size; ++column) {
      const int64_t x = column * 256 + 128, y = row * 256 + 128;
      int64_t squared = INT64_MAX;
      for (const Stroke& stroke : strokes) {
        for (size_t i = 1; i < stroke.size(); ++i) {
          const Point &from = stroke[i - 1], &to = stroke[i];
          squared =
              std::min(squared, SquaredDistance(x, y, scaled(from.x), scaled(from.y), scaled(to.x), scaled(to.y)));
        }
      }
      // Full within the pen, nothing a pixel farther out.
      const int64_t ink = std::clamp<int64_t>(radius + 128 - SquareRoot(squared), 0, 255);
      image[static_cast<size_t>(row * size + column)] = static_cast<uint8_t>(ink);
    }
  }
  return image;
}

Augmenter MakeAugmenter(const SyntheticOptions& options) {
  const double scale = options.size / 28.0;
  v1::Augmentation strengths;
  strengths.set_shift(2 * scale);
  strengths.set_rotate(12);
  strengths.set_scale(0.15);
  strengths.set_elastic(3 * scale);
  return Augmenter::Create(strengths, options.seed, {1, options.size, options.size}).value();
}

class SyntheticSamples final : public Samples {
 public:
  SyntheticSamples(const SyntheticOptions& options, SyntheticSplit split)
      : Samples(split == SyntheticSplit::kTrain ? options.train : options.test, {1, options.size, options.size}),
        split_(split),
        key_{static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32)},
        augmenter_(MakeAugmenter(options)) {
    for (uint32_t digit = 0; digit < kClasses; ++digit) {
      for (uint32_t hand = 0; hand < kHands; ++hand) {
        for (const int64_t radius : kPenRadii)
          templates_.push_back(Rasterise(Drawing(digit, hand), radius, options.size));
      }
    }
  }

  uint8_t label(uint64_t index) const override { return static_cast<uint8_t>(index % kClasses); }

  void CopyImage(uint64_t index, std::span<uint8_t> out) const override {
    assert(index < count() && out.size() == image_bytes());
    const auto words = Philox4x32(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(split_), kTag}, key_);
    const uint32_t hand = words[0] % kHands, pen = words[1] % kPens;
    const uint32_t brightness = kDarkest + words[2] % (256 - kDarkest);
    std::ranges::transform(templates_[(label(index) * kHands + hand) * kPens + pen], out.begin(),
                           [&](uint8_t ink) { return static_cast<uint8_t>(ink * brightness / 255); });
    EpochAugmenter(augmenter_, kFirstEpoch + static_cast<uint64_t>(split_)).Distort(index, out);
  }

 private:
  const SyntheticSplit split_;
  const PhiloxKey key_;
  const Augmenter augmenter_;
  std::vector<std::vector<uint8_t>> templates_;  // by digit, then by hand, then by pen
};

}  // namespace

bool IsSynthetic(std::string_view data_dir) {
  const absl::string_view text(data_dir.data(), data_dir.size());
  return text == kName || text.substr(0, kName.size() + 1) == absl::StrCat(kName, ":");
}

absl::StatusOr<SyntheticOptions> ParseSynthetic(std::string_view text) {
  SyntheticOptions options;
  const absl::string_view data_dir(text.data(), text.size());
  if (data_dir.size() <= kName.size() + 1) return options;
  for (const absl::string_view item : absl::StrSplit(data_dir.substr(kName.size() + 1), ',')) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
    const absl::string_view name = parts.first, digits = parts.second;
    uint64_t value = 0;
    const bool is_number = absl::SimpleAtoi(digits, &value);
    const auto set = [&](auto& field, uint64_t min, uint64_t max) -> absl::Status {
      if (!is_number || value < min || value > max) {
        return absl::InvalidArgumentError(
            absl::StrCat(data_dir, ": ", name, " '", digits, "' is not a number in [", min, ", ", max, "]"));
      }
      field = static_cast<std::remove_reference_t<decltype(field)>>(value);
      return absl::OkStatus();
    };
    absl::Status status = absl::InvalidArgumentError(
        absl::StrCat(data_dir, ": '", item, "' is none of train=N, test=N, seed=N, size=PIXELS"));
    if (name == "train") status = set(options.train, 1, kSyntheticCountMax);
    if (name == "test") status = set(options.test, 1, kSyntheticCountMax);
    if (name == "seed") status = set(options.seed, 0, UINT64_MAX);
    if (name == "size") status = set(options.size, kSizeMin, kSizeMax);
    if (!status.ok()) return status;
  }
  return options;
}

std::string FormatSynthetic(const SyntheticOptions& options) {
  return absl::StrCat(kName, ":train=", options.train, ",test=", options.test, ",seed=", options.seed,
                      ",size=", options.size);
}

std::unique_ptr<const Samples> MakeSyntheticSamples(const SyntheticOptions& options, SyntheticSplit split) {
  return std::make_unique<SyntheticSamples>(options, split);
}

std::vector<uint64_t> SyntheticClassCounts(uint64_t count) {
  std::vector<uint64_t> counts(kClasses, count / kClasses);
  for (uint64_t label = 0; label < count % kClasses; ++label) ++counts[label];
  return counts;
}

std::string SyntheticFingerprint(const SyntheticOptions& options) {
  return Sha256Hex(absl::StrCat("millrace drawing ", kVersion, "\n", FormatSynthetic(options)));
}

}  // namespace millrace
