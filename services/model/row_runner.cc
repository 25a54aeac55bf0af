#include "services/model/row_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

absl::StatusOr<std::vector<float>> PredictAny(const Predictor& predictor, std::span<const uint8_t> pixels,
                                              uint32_t rows) {
  return predictor.Predict(pixels, rows);
}
absl::StatusOr<std::vector<float>> PredictAny(const Predictor& predictor, std::span<const float> pixels,
                                              uint32_t rows) {
  return predictor.PredictFloats(pixels, rows);
}

template <typename Pixel>
class Run {
 public:
  Run(const Predictor& predictor, std::span<const Pixel> pixels) : predictor_(predictor), pixels_(pixels) {}

  // Depth: the logarithm of the rows.
  void Rows(uint32_t first, uint32_t rows) {
    const size_t row_pixels = predictor_.info().input.bytes();  // of one byte each
    absl::StatusOr<std::vector<float>> values =
        PredictAny(predictor_, pixels_.subspan(first * row_pixels, rows * row_pixels), rows);
    absl::Status status = values.ok() ? Check(*values, rows) : values.status();
    if (status.ok()) return Keep(first, *std::move(values));
    if (rows == 1) {
      answers_.faults.push_back({.row = first, .status = std::move(status)});
      return;
    }
    const uint32_t half = rows / 2;
    Rows(first, half);
    Rows(first + half, rows - half);
  }

  RowAnswers Answers(uint32_t rows) && {
    answers_.values.resize(rows * predictor_.info().values_per_row());  // if the last ones failed
    return std::move(answers_);
  }

 private:
  absl::Status Check(const std::vector<float>& values, uint32_t rows) const {
    const ModelInfo& info = predictor_.info();
    if (values.size() != uint64_t{rows} * info.values_per_row()) {
      return absl::InternalError(
          absl::StrCat("model ", info.model, " answered ", values.size(), " numbers for ", rows, " rows"));
    }
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
      return absl::InternalError(absl::StrCat("model ", info.model, " answered with a NaN or an infinity"));
    }
    return absl::OkStatus();
  }

  void Keep(uint32_t first, std::vector<float> values) {
    const size_t begin = first * predictor_.info().values_per_row();
    if (begin == 0 && answers_.values.empty()) {
      answers_.values = std::move(values);
      return;
    }
    answers_.values.resize(std::max(answers_.values.size(), begin + values.size()));
    std::copy(values.begin(), values.end(), answers_.values.begin() + static_cast<ptrdiff_t>(begin));
  }

  const Predictor& predictor_;
  const std::span<const Pixel> pixels_;
  RowAnswers answers_;
};

template <typename Pixel>
RowAnswers RunAnyRows(const Predictor& predictor, std::span<const Pixel> pixels, uint32_t rows, bool alone) {
  Run<Pixel> run(predictor, pixels);
  if (alone) {
    for (uint32_t row = 0; row < rows; ++row) run.Rows(row, 1);
  } else {
    run.Rows(0, rows);
  }
  return std::move(run).Answers(rows);
}

}  // namespace

RowAnswers RunRows(const Predictor& predictor, std::span<const uint8_t> pixels, uint32_t rows, bool alone) {
  return RunAnyRows(predictor, pixels, rows, alone);
}

RowAnswers RunRows(const Predictor& predictor, std::span<const float> pixels, uint32_t rows, bool alone) {
  return RunAnyRows(predictor, pixels, rows, alone);
}

}  // namespace millrace
