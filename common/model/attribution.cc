#include "common/model/attribution.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "torch/torch.h"

namespace millrace {
namespace {

constexpr int64_t kRowsAtOnce = 64;       // of one forward pass
constexpr int64_t kOcclusionsMax = 1024;  // per image: larger ones are hidden in coarser steps
constexpr float kLeastProbability = 1e-30f;

absl::Status CheckOptions(const ExplainOptions& options, int64_t classes) {
  if (options.steps < 1 || options.steps > kExplainStepsMax) {
    return absl::InvalidArgumentError(absl::StrCat("steps ", options.steps, " is not in [1, ", kExplainStepsMax, "]"));
  }
  if (options.patch % 2 == 0 || options.patch > kExplainPatchMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("patch ", options.patch, " is not an odd number in [1, ", kExplainPatchMax, "]"));
  }
  if (options.target.has_value() && *options.target >= classes) {
    return absl::InvalidArgumentError(absl::StrCat("target ", *options.target, " is not one of ", classes, " classes"));
  }
  return absl::OkStatus();
}

absl::Status GoOn(const ExplainOptions& options) { return options.go_on ? options.go_on() : absl::OkStatus(); }

// The score of each row's target: [rows].
at::Tensor TargetScores(const ScoreFunction& scores, const at::Tensor& pixels, const at::Tensor& targets) {
  return scores(pixels).gather(1, targets.unsqueeze(1)).squeeze(1);
}

// d (sum of the targets' scores, or of their logarithms) / d pixels.
at::Tensor Gradients(const ScoreFunction& scores, const at::Tensor& pixels, const at::Tensor& targets, bool of_log) {
  torch::AutoGradMode grad(true);
  const at::Tensor input = pixels.detach().clone().requires_grad_(true);
  at::Tensor score = TargetScores(scores, input, targets);
  if (of_log) score = score.clamp_min(kLeastProbability).log();
  return torch::autograd::grad({score.sum()}, {input})[0];
}

// By the midpoint rule, the rows of some steps at a time.
absl::StatusOr<at::Tensor> IntegratedGradients(const ScoreFunction& scores, const at::Tensor& pixels,
                                               const at::Tensor& targets, const ExplainOptions& options) {
  const int64_t rows = pixels.size(0);
  const int64_t steps = options.steps;
  const int64_t steps_at_once = std::max<int64_t>(1, kRowsAtOnce / rows);
  at::Tensor sum = torch::zeros_like(pixels);
  for (int64_t step = 0; step < steps; step += steps_at_once) {
    MILLRACE_RETURN_IF_ERROR(GoOn(options));
    const int64_t count = std::min(steps_at_once, steps - step);
    const at::Tensor way = (torch::arange(step, step + count, torch::kFloat32) + 0.5) / static_cast<double>(steps);
    const at::Tensor points = (way.view({count, 1, 1, 1, 1}) * pixels.unsqueeze(0)).flatten(0, 1);
    sum += Gradients(scores, points, targets.repeat({count}), /*of_log=*/false)
               .view({count, rows, pixels.size(1), pixels.size(2), pixels.size(3)})
               .sum(0);
  }
  return (sum / static_cast<double>(steps) * pixels).sum(1);
}

// Every stride-th pixel is the centre of a square; its neighbours take over what came of it.
absl::StatusOr<at::Tensor> Occlusion(const ScoreFunction& scores, const at::Tensor& pixels, const at::Tensor& targets,
                                     const ExplainOptions& options) {
  torch::NoGradGuard no_grad;
  const int64_t height = pixels.size(2);
  const int64_t width = pixels.size(3);
  const auto stride = static_cast<int64_t>(
      std::ceil(std::sqrt(static_cast<double>(height * width) / static_cast<double>(kOcclusionsMax))));
  const int64_t reach = options.patch / 2;
  at::Tensor map = torch::empty({pixels.size(0), height, width});
  for (int64_t row = 0; row < pixels.size(0); ++row) {
    const at::Tensor whole = TargetScores(scores, pixels.narrow(0, row, 1), targets.narrow(0, row, 1));
    std::vector<std::pair<int64_t, int64_t>> cells;
    for (int64_t y = 0; y < height; y += stride) {
      for (int64_t x = 0; x < width; x += stride) cells.emplace_back(y, x);
    }
    for (size_t first = 0; first < cells.size(); first += kRowsAtOnce) {
      MILLRACE_RETURN_IF_ERROR(GoOn(options));
      const auto count = static_cast<int64_t>(std::min<size_t>(kRowsAtOnce, cells.size() - first));
      const at::Tensor hidden = pixels.narrow(0, row, 1).repeat({count, 1, 1, 1});
      for (int64_t i = 0; i < count; ++i) {
        const auto [y, x] = cells[first + static_cast<size_t>(i)];
        const int64_t top = std::max<int64_t>(0, y + stride / 2 - reach);
        const int64_t left = std::max<int64_t>(0, x + stride / 2 - reach);
        const int64_t bottom = std::min(height, y + stride / 2 + reach + 1);
        const int64_t right = std::min(width, x + stride / 2 + reach + 1);
        if (top < bottom && left < right) hidden[i].slice(1, top, bottom).slice(2, left, right).zero_();
      }
      const at::Tensor fall = whole - TargetScores(scores, hidden, targets.narrow(0, row, 1).repeat({count}));
      for (int64_t i = 0; i < count; ++i) {
        const auto [y, x] = cells[first + static_cast<size_t>(i)];
        map[row].slice(0, y, std::min(height, y + stride)).slice(1, x, std::min(width, x + stride)).fill_(fall[i]);
      }
    }
  }
  return map;
}

absl::StatusOr<at::Tensor> Maps(const ScoreFunction& scores, const at::Tensor& pixels, const at::Tensor& targets,
                                const ExplainOptions& options) {
  switch (options.method) {
    case ExplainMethod::kSaliency:
      return Gradients(scores, pixels, targets, /*of_log=*/true).abs().amax(1);
    case ExplainMethod::kIntegratedGradients:
      return IntegratedGradients(scores, pixels, targets, options);
    case ExplainMethod::kOcclusion:
      return Occlusion(scores, pixels, targets, options);
  }
  return absl::InvalidArgumentError("unknown method");
}

}  // namespace

absl::StatusOr<std::vector<Explanation>> Attribute(const ScoreFunction& scores, const at::Tensor& pixels,
                                                   const ExplainOptions& options) {
  at::Tensor answers;
  at::Tensor black;
  {
    torch::NoGradGuard no_grad;
    answers = scores(pixels);
    black = scores(torch::zeros_like(pixels.narrow(0, 0, 1)));
  }
  MILLRACE_RETURN_IF_ERROR(CheckOptions(options, answers.size(1)));
  const at::Tensor targets = options.target.has_value()
                                 ? torch::full({pixels.size(0)}, int64_t{*options.target}, torch::kInt64)
                                 : answers.argmax(1);
  MILLRACE_ASSIGN_OR_RETURN(at::Tensor maps, Maps(scores, pixels, targets, options));
  maps = maps.detach().contiguous();

  std::vector<Explanation> explanations;
  for (int64_t row = 0; row < pixels.size(0); ++row) {
    const auto target = targets[row].item<int64_t>();
    const float* map = maps[row].data_ptr<float>();
    Explanation& explanation = explanations.emplace_back();
    explanation.target = static_cast<uint32_t>(target);
    explanation.score = answers[row][target].item<float>();
    explanation.baseline_score = black[0][target].item<float>();
    explanation.map.assign(map, map + maps[row].numel());
    if (options.method == ExplainMethod::kIntegratedGradients) {
      const double sum = std::accumulate(explanation.map.begin(), explanation.map.end(), 0.0);
      explanation.completeness_error =
          static_cast<float>(std::abs(sum - (explanation.score - explanation.baseline_score)));
    }
  }
  return explanations;
}

}  // namespace millrace
