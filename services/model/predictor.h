// What the model service asks of a loaded model version, and how it gets one. The network behind it stays out of sight,
// so that everything above can be tested with a fake.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/image_shape.h"
#include "common/model/drift.h"
#include "common/model/explanation.h"
#include "common/signing.h"

namespace millrace {

// What a version says about itself.
struct ModelInfo {
  std::string model;
  uint64_t version = 0;
  uint64_t step = 0;     // training step
  std::string digest;    // SHA-256 of model.pt, lower-case hexadecimal
  double accuracy = 0;   // [0, 1]: test, else validation; 0 if neither is known
  ImageShape input;      // of one row
  uint32_t classes = 0;  // 0: the answer is a reconstruction of the image, with pixels in [0, 1], and its error
  std::optional<Distribution> reference = std::nullopt;  // what images and answers looked like when it was made

  // Numbers in the answer for one row.
  uint64_t values_per_row() const { return classes > 0 ? classes : input.bytes() + 1; }
};

// A verified model version. Immutable; any number of threads at once.
class Predictor {
 public:
  virtual ~Predictor() = default;

  virtual const ModelInfo& info() const = 0;
  // images: uint8 [rows, channels, height, width]; returns [rows, info().values_per_row()]. INVALID_ARGUMENT if
  // the sizes do not match, INTERNAL if the forward pass fails.
  virtual absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const = 0;
  // The same for pixels that are float32, of the same range.
  virtual absl::StatusOr<std::vector<float>> PredictFloats(std::span<const float> images, size_t rows) const = 0;
  // Why, one explanation per image. Errors as Predict, INVALID_ARGUMENT for options out of range, and UNIMPLEMENTED for
  // what cannot be explained; takes milliseconds to seconds.
  virtual absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t> images, size_t rows,
                                                           const ExplainOptions& options) const {
    (void)images, (void)rows, (void)options;
    return absl::UnimplementedError("this model does not explain its answers");
  }
};

struct LoadResult {
  std::unique_ptr<const Predictor> predictor;  // set exactly if status is OK
  absl::Status status;
  // Why the version must not be served, a word from a small fixed set (it labels a metric). Empty if the error says
  // nothing about the version (storage unreachable, out of memory): worth another try.
  std::string refusal;
};

// Verifies and loads the version in a directory; may take seconds. Called by one thread at a time.
using LoadVersion = std::function<LoadResult(const std::string& version_directory)>;

// The real one: common/model/servable.h. Null keys: versions need no signature. Call ConfigureTorch before it is used.
LoadVersion ServableLoader(std::shared_ptr<const TrustedKeys> trusted_keys = nullptr);

}  // namespace millrace
