// A servable model version: the directory <repository>/<model>/<version>/ with
//   model.pt       TorchScript, preprocessing inside: INPUT__0 [-1, channels, height, width] UINT8 or FP32 with raw
//   pixels
//                  0-255 in, OUTPUT__0 [-1, classes] FP32 class probabilities out; of an autoencoder OUTPUT__0
//                  [-1, channels, height, width] FP32, the reconstruction with pixels in [0, 1], and OUTPUT__1 [-1, 1]
//                  FP32, its mean squared error. PyTorch and Triton load it as it is.
//   manifest.json  what the version is and the size and SHA-256 of every other file; written last
//   (common/model/manifest.h)
//   manifest.sig   who made it: an Ed25519 signature of manifest.json (common/signing.h); optional
// and <repository>/<model>/config.pbtxt for Triton, written once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/explanation.h"
#include "common/model/manifest.h"
#include "common/signing.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

struct ExportOptions {
  std::string repository;  // made if missing
  std::string model_name;  // e.g. "mnist"
  uint64_t version = 0;    // = step, >= 1
  uint64_t epoch = 0;      // completed epochs
  v1::NetworkSpec network;
  std::span<const float> parameters;  // the flat vector at `version`, statistics included
  std::optional<v1::Evaluation> validation;
  std::optional<v1::Evaluation> test;
  // uint8 [rows, channels, height, width], of the validation split: what the manifest's reference is made of. May be
  // empty.
  std::span<const uint8_t> reference_images = {};
  uint64_t seed = 0;
  std::string dataset_fingerprint;
  std::shared_ptr<const SigningKey> signing_key = nullptr;  // null: the version is not signed
};

struct ExportedServable {
  std::string directory;       // of the version
  std::string weights_sha256;  // of the flat parameter vector, little-endian float32, lower-case hexadecimal
  bool already_there = false;  // a complete version with the same weights existed; nothing was written
};

// Writes one version: everything under a temporary name that starts with '.', fsynced, renamed, parent fsynced. A
// reader sees the whole version or none. ALREADY_EXISTS if the version is there with other weights; RESOURCE_EXHAUSTED
// or PERMISSION_DENIED etc. from the file system, with nothing half-written left under a visible name;
// FAILED_PRECONDITION if a weight is not finite. One exporter per (repository, model) at a time.
absl::StatusOr<ExportedServable> ExportServable(const ExportOptions& options);

// SHA-256 of a flat parameter vector as little-endian float32: "weights_sha256" wherever it appears.
std::string WeightsSha256(std::span<const float> parameters);

// Why a version was refused; a metric label and the first word of the message.
enum class RefusalReason {
  kTorn,       // a file is missing, truncated or has another size than the manifest says
  kDigest,     // a file or the weights have another SHA-256
  kFormat,     // the manifest cannot be read, or is of a format this build does not know
  kSignature,  // the module cannot be loaded, or does not map the declared input to the declared output
  kNotFinite,  // a weight is NaN or infinite
  kGolden,     // the module's answers to the manifest's own images differ
  kUntrusted,  // no trusted key has signed the manifest
};
std::string_view RefusalReasonName(
    RefusalReason reason);  // "torn", "digest", "format", "signature", "not_finite", "golden"
// The reason attached to an error of ServableModel::Load; nullopt for errors that say nothing about the version (the
// directory cannot be read, out of memory): worth another try.
std::optional<RefusalReason> RefusalReasonOf(const absl::Status& status);

// A verified, frozen and warmed version that answers predictions. Immutable.
class ServableModel {
 public:
  struct LoadOptions {
    size_t max_warm_batch = 32;
    std::shared_ptr<const TrustedKeys> trusted_keys = nullptr;  // null: versions need no signature
  };
  // Verifies everything the manifest promises, then warms batch sizes 1, 2, 4 ... max_warm_batch. Takes tens to
  // hundreds of milliseconds; run it away from the request path. Call ConfigureTorch before the first.
  // FAILED_PRECONDITION with a RefusalReason if the version must not be served; NOT_FOUND without one if the directory
  // has no manifest (an export in progress, or deleted).
  static absl::StatusOr<std::shared_ptr<const ServableModel>> Load(const std::string& version_directory,
                                                                   const LoadOptions& options);
  static absl::StatusOr<std::shared_ptr<const ServableModel>> Load(const std::string& version_directory);
  ~ServableModel();
  ServableModel(const ServableModel&) = delete;
  ServableModel& operator=(const ServableModel&) = delete;

  const ServableManifest& manifest() const;

  // images: uint8 [rows, channels, height, width]; returns [rows, manifest().values_per_row()]: probabilities, or each
  // row's reconstruction followed by its error. INVALID_ARGUMENT if rows is 0 or the sizes do not match; INTERNAL if
  // LibTorch fails. Any number of threads at once; each runs its own forward pass with the intra-op threads of
  // ConfigureTorch.
  absl::StatusOr<std::vector<float>> Predict(std::span<const uint8_t> images, size_t rows) const;
  // float32 pixels, 0 to 255 too: whole numbers give the bits that the same uint8 give.
  absl::StatusOr<std::vector<float>> Predict(std::span<const float> images, size_t rows) const;
  // Why: one explanation per image. Takes milliseconds to seconds. Errors as Predict and Attribute (attribution.h).
  absl::StatusOr<std::vector<Explanation>> Explain(std::span<const uint8_t> images, size_t rows,
                                                   const ExplainOptions& options) const;

 private:
  struct State;
  explicit ServableModel(std::unique_ptr<State> state);

  absl::Status CheckImages(size_t pixels, size_t rows) const;
  template <typename Pixel>
  absl::StatusOr<std::vector<float>> PredictAny(std::span<const Pixel> images, size_t rows) const;

  std::unique_ptr<State> state_;
};

}  // namespace millrace
