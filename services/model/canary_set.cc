#include "services/model/canary_set.h"

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/strings.h"
#include "services/data/sample_files.h"

namespace millrace {
namespace {

constexpr size_t kBatchRows = 100;

absl::StatusOr<std::unique_ptr<MemorySamples>> ReadFiles(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    MILLRACE_ASSIGN_OR_RETURN(const DatasetFiles files, FindDatasetFiles(path));
    return ReadSamples(files.format, files.test, files.transposed);
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::filesystem::path> pair,
                            FindIdxPair(path.parent_path(), path.filename().string()));
  return ReadSamples(DatasetFiles::Format::kIdx, pair, false);
}

}  // namespace

std::string_view Name(CanaryScore::Measure measure) {
  return measure == CanaryScore::Measure::kAccuracy ? "accuracy" : "error";
}

absl::StatusOr<CanarySet> CanarySet::Read(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<MemorySamples> samples, ReadFiles(path));
  const size_t rows = std::min<size_t>(samples->count(), kRowsMax);
  const auto pixels = samples->all_pixels().first(rows * samples->image_bytes());
  const auto labels = samples->labels().first(rows);
  return CanarySet(samples->shape(), {pixels.begin(), pixels.end()}, {labels.begin(), labels.end()});
}

CanarySet::CanarySet(const ImageShape& shape, std::vector<uint8_t> pixels, std::vector<uint8_t> labels)
    : shape_(shape), pixels_(std::move(pixels)), labels_(std::move(labels)) {
  assert(pixels_.size() == labels_.size() * shape_.bytes());
}

absl::StatusOr<std::optional<CanaryScore>> CanarySet::Measure(const Predictor& predictor) const {
  const ModelInfo& info = predictor.info();
  const bool classifies = info.classes > 0;
  if (info.input != shape_ || labels_.empty()) return std::nullopt;
  if (classifies && *std::max_element(labels_.begin(), labels_.end()) >= info.classes) return std::nullopt;
  double sum = 0;
  for (size_t first = 0; first < rows(); first += kBatchRows) {
    const size_t count = std::min(kBatchRows, rows() - first);
    MILLRACE_ASSIGN_OR_RETURN(
        const std::vector<float> values,
        predictor.Predict(std::span(pixels_).subspan(first * shape_.bytes(), count * shape_.bytes()), count));
    for (size_t row = 0; row < count; ++row) {
      const auto answer = std::span(values).subspan(row * info.values_per_row(), info.values_per_row());
      if (classifies) {
        sum += std::max_element(answer.begin(), answer.end()) - answer.begin() == labels_[first + row] ? 1 : 0;
      } else {
        sum += answer.back();
      }
    }
  }
  return CanaryScore{.measure = classifies ? CanaryScore::Measure::kAccuracy : CanaryScore::Measure::kError,
                     .value = sum / static_cast<double>(rows()),
                     .rows = rows()};
}

absl::Status CheckNotWorse(const CanaryScore& fresh, const CanaryScore& live, uint64_t live_version, double margin) {
  if (fresh.measure != live.measure) return absl::OkStatus();
  if (fresh.measure == CanaryScore::Measure::kAccuracy) {
    if (fresh.value >= live.value - margin) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrFormat("worse accuracy: %.2f %% of the canary set's %d rows, version %d which serves has %.2f %%; the "
                        "margin is %.2f %%",
                        100 * fresh.value, fresh.rows, live_version, 100 * live.value, 100 * margin));
  }
  if (fresh.value <= live.value * (1 + margin)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("worse error: %.6f over the canary set's %d rows, version %d which serves has %.6f; the margin "
                      "is %.2f %% of that",
                      fresh.value, fresh.rows, live_version, live.value, 100 * margin));
}

}  // namespace millrace
