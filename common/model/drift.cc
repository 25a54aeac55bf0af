#include "common/model/drift.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace millrace {
namespace {

// What is no number counts as nothing.
size_t Bin(double value, double width) {
  if (!(value > 0)) return 0;
  return static_cast<size_t>(std::min(value / width, static_cast<double>(Distribution::kBins - 1)));
}

// Whole numbers are added as such, so that the compiler may add many at once.
double Sum(std::span<const uint8_t> pixels) { return std::accumulate(pixels.begin(), pixels.end(), uint32_t{0}); }
double Sum(std::span<const float> pixels) { return std::accumulate(pixels.begin(), pixels.end(), 0.0); }

template <typename Pixel>
void AddRows(std::span<const float> answers, std::span<const Pixel> pixels, size_t rows, Distribution& to) {
  const size_t answer = answers.size() / rows, image = pixels.size() / rows, classes = to.classes.size();
  for (size_t row = 0; row < rows; ++row) {
    if (classes > 0) {
      const auto probabilities = answers.subspan(row * answer, classes);
      const auto best = std::max_element(probabilities.begin(), probabilities.end());
      ++to.classes[static_cast<size_t>(best - probabilities.begin())];
      ++to.confidence[Bin(*best, Distribution::kConfidenceWidth)];
    }
    const double ink = Sum(pixels.subspan(row * image, image)) / (255.0 * static_cast<double>(image));
    ++to.ink[Bin(ink, Distribution::kInkWidth)];
  }
  to.rows += rows;
}

}  // namespace

void Distribution::Add(std::span<const float> answers, std::span<const uint8_t> pixels, size_t rows) {
  AddRows(answers, pixels, rows, *this);
}
void Distribution::Add(std::span<const float> answers, std::span<const float> pixels, size_t rows) {
  AddRows(answers, pixels, rows, *this);
}

void Distribution::Add(const Distribution& other) {
  rows += other.rows;
  for (size_t i = 0; i < classes.size(); ++i) classes[i] += other.classes[i];
  for (size_t i = 0; i < kBins; ++i) confidence[i] += other.confidence[i];
  for (size_t i = 0; i < kBins; ++i) ink[i] += other.ink[i];
}

double PopulationStability(std::span<const uint64_t> reference, std::span<const uint64_t> recent) {
  const auto total = [](std::span<const uint64_t> counts) {
    return static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0})) +
           0.5 * static_cast<double>(counts.size());
  };
  const double reference_total = total(reference), recent_total = total(recent);
  double index = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double p = (static_cast<double>(reference[i]) + 0.5) / reference_total;
    const double q = (static_cast<double>(recent[i]) + 0.5) / recent_total;
    index += (p - q) * std::log(p / q);
  }
  return index;
}

}  // namespace millrace
