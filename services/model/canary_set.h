// The canary set: a few labelled images by which a new version is compared with the one that serves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/image_shape.h"
#include "services/model/predictor.h"

namespace millrace {

struct CanaryScore {
  enum class Measure {
    kAccuracy,  // of a classifier: share of the rows that it gets right
    kError,     // of an autoencoder: mean error of the rows
  };
  Measure measure = Measure::kAccuracy;
  double value = 0;
  size_t rows = 0;
};
std::string_view Name(CanaryScore::Measure measure);  // "accuracy", "error"

// Immutable: any thread.
class CanarySet {
 public:
  static constexpr size_t kRowsMax = 1000;  // the first that the files hold; the others are not kept

  // `path`: a dataset's directory (services/data/dataset_files.h), whose test files are taken, or PREFIX of
  // PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, each perhaps with .gz. Errors of those who read them.
  static absl::StatusOr<CanarySet> Read(const std::string& path);
  // `pixels`: uint8 [labels.size(), channels, height, width].
  CanarySet(const ImageShape& shape, std::vector<uint8_t> pixels, std::vector<uint8_t> labels);

  size_t rows() const { return labels_.size(); }
  // Takes about as long as kRowsMax predictions. Nothing for a model that takes other images or has fewer classes: the
  // set says nothing about it. Errors of Predict.
  absl::StatusOr<std::optional<CanaryScore>> Measure(const Predictor& predictor) const;

 private:
  ImageShape shape_;
  std::vector<uint8_t> pixels_;
  std::vector<uint8_t> labels_;
};

// FAILED_PRECONDITION, "worse accuracy: ..." or "worse error: ...", if `fresh` is worse than `live`, which
// `live_version` has, by more than the margin: of accuracies a difference, of errors a share of the live one. Scores of
// different measures are not compared.
absl::Status CheckNotWorse(const CanaryScore& fresh, const CanaryScore& live, uint64_t live_version, double margin);

}  // namespace millrace
