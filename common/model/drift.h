// What a version's inputs and answers look like taken together, for telling whether they still look as they did when it
// was made. Pure; no LibTorch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

// Counts of rows. An image's ink is the mean of its pixels, white being 1.
struct Distribution {
  static constexpr size_t kBins = 20;
  static constexpr double kConfidenceWidth = 0.05;  // of a bin of the confidence, [0, 1]
  static constexpr double kInkWidth = 0.025;        // of a bin of the ink; the last holds what is above it too

  uint64_t rows = 0;
  std::vector<uint64_t> classes;             // rows by most probable class; empty for what does not classify
  std::array<uint64_t, kBins> confidence{};  // by how probable that class is; zeros likewise
  std::array<uint64_t, kBins> ink{};

  // `answers`: [rows, values_per_row], of which the first `classes.size()` are probabilities; `pixels`: [rows, ...], 0
  // to 255. Takes as long as it takes to read them once.
  void Add(std::span<const float> answers, std::span<const uint8_t> pixels, size_t rows);
  void Add(std::span<const float> answers, std::span<const float> pixels, size_t rows);
  void Add(const Distribution& other);

  friend bool operator==(const Distribution&, const Distribution&) = default;
};

// The population stability index of counts over the same bins: the sum over the bins of (p - q) ln(p / q), where p and
// q are the bins' shares, half a row being added to each bin. 0: no difference; below 0.1 is commonly held to be noise,
// above 0.25 a shift. Requires equal, non-empty sizes. (Siddiqi, Credit Risk Scorecards, 2006.)
double PopulationStability(std::span<const uint64_t> reference, std::span<const uint64_t> recent);

}  // namespace millrace
