// Why a model answered as it did: a number for each pixel of the image it was asked about. No LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"

namespace millrace {

// The score that is explained is the probability of a class; of a reconstruction, its error.
enum class ExplainMethod {
  // |d log score / d pixel|, the largest of a pixel's channels (Simonyan, Vedaldi, Zisserman 2013, arXiv:1312.6034).
  kSaliency,
  // Gradients averaged over the way from a black image, times the pixel (Sundararajan, Taly, Yan 2017,
  // arXiv:1703.01365). The map's sum is the score less the black image's, but for what `completeness_error` says.
  kIntegratedGradients,
  // By how much the score falls when a black square hides the pixel (Zeiler, Fergus 2013, arXiv:1311.2901).
  kOcclusion,
};

inline constexpr uint32_t kExplainStepsMax = 1000;
inline constexpr uint32_t kExplainPatchMax = 63;

struct ExplainOptions {
  ExplainMethod method = ExplainMethod::kIntegratedGradients;
  std::optional<uint32_t> target = {};  // class; unset: the most probable one
  uint32_t steps = 64;                  // [1, kExplainStepsMax] of integrated gradients
  uint32_t patch = 5;                   // pixels, odd, [1, kExplainPatchMax]: side of the square of occlusion
  // Asked between pieces of work of some milliseconds; an error ends the work with it.
  std::function<absl::Status()> go_on = nullptr;
};

// Of one image.
struct Explanation {
  uint32_t target = 0;  // class; 0 for a reconstruction
  float score = 0;
  float baseline_score = 0;      // of a black image
  std::vector<float> map;        // [height, width]
  float completeness_error = 0;  // |sum of the map - (score - baseline_score)|; of integrated gradients only
};

}  // namespace millrace
