// Model versions without a network: a version directory holds manifest.json with one word, and the loader does what the
// word says. Answers give the version away, so that a test can tell which one answered.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/model/predictor.h"

namespace millrace {

inline constexpr ImageShape kFakeShape{.channels = 1, .height = 2, .width = 3};
inline constexpr uint32_t kFakeClasses = 4;

// The most probable class of every row is version % kFakeClasses. Without classes, the pixels of row r are all r and
// its error is the version.
class FakePredictor : public Predictor {
 public:
  explicit FakePredictor(ModelInfo info, std::function<void()> on_predict = nullptr)
      : info_(std::move(info)), on_predict_(std::move(on_predict)) {}

  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t>, size_t rows) const override {
    if (on_predict_) on_predict_();
    if (info_.classes == 0) {
      std::vector<float> values;
      for (size_t row = 0; row < rows; ++row) {
        values.resize(values.size() + info_.input.bytes(), static_cast<float>(row));
        values.push_back(static_cast<float>(info_.version));
      }
      return values;
    }
    std::vector<float> probabilities(rows * info_.classes, 0.1f);
    for (size_t row = 0; row < rows; ++row) probabilities[row * info_.classes + info_.version % info_.classes] = 0.7f;
    return probabilities;
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float>, size_t rows) const override {
    return Predict({}, rows);
  }
  // The map of an image is its pixels; its score is the version.
  absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t> images, size_t rows,
                                                   const ExplainOptions& options) const override {
    if (on_predict_) on_predict_();
    if (options.go_on) {
      if (absl::Status status = options.go_on(); !status.ok()) return status;
    }
    std::vector<Explanation> explanations(rows);
    for (size_t row = 0; row < rows; ++row) {
      const auto image = images.subspan(row * info_.input.bytes(), info_.input.bytes());
      explanations[row].score = static_cast<float>(info_.version);
      explanations[row].map.assign(image.begin(), image.end());
    }
    return explanations;
  }

 private:
  const ModelInfo info_;
  const std::function<void()> on_predict_;
};

inline ModelInfo FakeInfo(const std::string& model, uint64_t version) {
  return {.model = model,
          .version = version,
          .step = version,
          .digest = absl::StrCat("digest-", version),
          .accuracy = 0.5,
          .input = kFakeShape,
          .classes = kFakeClasses};
}

// "good", "bad" (refused), "away" (an error that says nothing about the version), "misplaced" (another version's
// manifest), "autoencoder" (a good one without classes).
inline LoadVersion FakeLoader(std::function<void()> on_predict = nullptr) {
  return [on_predict](const std::string& directory) -> LoadResult {
    const std::filesystem::path path(directory);
    std::string word;
    std::ifstream(path / "manifest.json") >> word;
    ModelInfo info = FakeInfo(path.parent_path().filename(), std::stoull(path.filename()));
    if (word == "bad") return {nullptr, absl::FailedPreconditionError("digest: model.pt differs"), "digest"};
    if (word == "away") return {nullptr, absl::UnavailableError("storage is away"), ""};
    if (word == "misplaced") info.version += 1;
    if (word == "autoencoder") info.classes = 0;
    return {std::make_unique<FakePredictor>(std::move(info), on_predict), absl::OkStatus(), ""};
  };
}

// Publishes as exporters do: under a temporary name first. Replaces a version that is there.
inline void PublishFake(const std::filesystem::path& repository, const std::string& model, uint64_t version,
                        const std::string& word = "good") {
  const std::filesystem::path temporary = repository / model / absl::StrCat(".", version, ".tmp");
  std::filesystem::create_directories(temporary);
  std::ofstream(temporary / "manifest.json") << word;
  std::filesystem::remove_all(repository / model / absl::StrCat(version));
  std::filesystem::rename(temporary, repository / model / absl::StrCat(version));
}

}  // namespace millrace
