#include <optional>
#include <utility>

#include "common/model/servable.h"
#include "services/model/predictor.h"

namespace millrace {
namespace {

double AccuracyOf(const ServableManifest& manifest) {
  if (manifest.test) return manifest.test->accuracy();
  if (manifest.validation) return manifest.validation->accuracy();
  return 0;
}

class ServablePredictor : public Predictor {
 public:
  explicit ServablePredictor(std::shared_ptr<const ServableModel> servable) : servable_(std::move(servable)) {
    const ServableManifest& manifest = servable_->manifest();
    info_ = {.model = manifest.model,
             .version = manifest.version,
             .step = manifest.version,
             .digest = std::string(manifest.model_sha256()),
             .accuracy = AccuracyOf(manifest),
             .input = {.channels = manifest.channels, .height = manifest.height, .width = manifest.width},
             .classes = manifest.classes,
             .reference = manifest.reference};
  }

  const ModelInfo& info() const override { return info_; }

  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const override {
    return servable_->Predict(images, rows);
  }
  absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float> images, size_t rows) const override {
    return servable_->Predict(images, rows);
  }
  absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t> images, size_t rows,
                                                   const ExplainOptions& options) const override {
    return servable_->Explain(images, rows, options);
  }

 private:
  const std::shared_ptr<const ServableModel> servable_;
  ModelInfo info_;
};

}  // namespace

LoadVersion ServableLoader(std::shared_ptr<const TrustedKeys> trusted_keys) {
  // Warmed where it will run, by InferenceEngine::Warm.
  return [trusted_keys = std::move(trusted_keys)](const std::string& version_directory) -> LoadResult {
    absl::StatusOr<std::shared_ptr<const ServableModel>> servable =
        ServableModel::Load(version_directory, {.max_warm_batch = 0, .trusted_keys = trusted_keys});
    if (servable.ok())
      return {.predictor = std::make_unique<ServablePredictor>(*std::move(servable)), .status = {}, .refusal = {}};
    const std::optional<RefusalReason> reason = RefusalReasonOf(servable.status());
    return {.predictor = nullptr,
            .status = servable.status(),
            .refusal = reason ? std::string(RefusalReasonName(*reason)) : std::string()};
  };
}

}  // namespace millrace
