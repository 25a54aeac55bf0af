#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/data/samples.h"

namespace millrace {

// A dataset of drawn digits, of any size, without files: sample i of a split has label i % 10, and its image is made
// when it is asked for, so that a billion samples take no more memory than one.
struct SyntheticOptions {
  uint64_t train = 60'000;  // samples, [1, kSyntheticCountMax]
  uint64_t test = 10'000;
  uint64_t seed = 1;
  uint32_t size = 28;  // pixels each way, [8, 256]
};
inline constexpr uint64_t kSyntheticCountMax = 1'000'000'000'000;

// "synthetic", or "synthetic:" and what follows.
bool IsSynthetic(std::string_view data_dir);
// "synthetic:train=60000,test=10000,seed=1,size=28", any of them in any order. INVALID_ARGUMENT names what is wrong.
absl::StatusOr<SyntheticOptions> ParseSynthetic(std::string_view text);
// In the form that ParseSynthetic reads, with all of them.
std::string FormatSynthetic(const SyntheticOptions& options);

enum class SyntheticSplit : uint64_t { kTrain = 0, kTest = 1 };

// A pure function of (options' seed and size, split, index), in whole numbers only, so that every machine makes the
// same bytes: one of two hands' strokes for the digit, with a pen of one of three widths, at some brightness, distorted
// by an Augmenter keyed by split and index. Its values are pinned by a golden test.
std::unique_ptr<const Samples> MakeSyntheticSamples(const SyntheticOptions& options, SyntheticSplit split);

// By label, of the first `count` samples.
std::vector<uint64_t> SyntheticClassCounts(uint64_t count);

// SHA-256 of the generator's version and the options: equal for equal samples.
std::string SyntheticFingerprint(const SyntheticOptions& options);

}  // namespace millrace
