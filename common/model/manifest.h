// manifest.json of a servable version: what it is, what it promises, and what its files must be. Pure data and JSON; no
// LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/drift.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

inline constexpr int kManifestFormat = 1;
inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kSignatureFile[] = "manifest.sig";  // of manifest.json (common/signing.h); optional
inline constexpr char kModelFile[] = "model.pt";
inline constexpr size_t kManifestBytesMax = size_t{16} << 20;
inline constexpr char kInputName[] = "INPUT__0";  // Triton's positional names for TorchScript
inline constexpr char kOutputName[] = "OUTPUT__0";
inline constexpr char kErrorName[] = "OUTPUT__1";  // of a reconstruction

struct ManifestFile {
  std::string name;  // inside the version directory
  uint64_t bytes = 0;
  std::string sha256;  // lower-case hexadecimal
};

// What a version answers for an image.
enum class OutputKind {
  kProbabilities,   // of the classes
  kReconstruction,  // the image again, pixels in [0, 1], and its error
};

// What the exporter got for GoldenImages(): every reader must get it too, within kGoldenTolerance.
struct GoldenPredictions {
  uint32_t images = 0;
  std::vector<float> values;  // [images, values_per_row]
};
inline constexpr uint32_t kGoldenImageCount = 4;
// Absolute, on a probability or a pixel. Other instruction sets and fused kernels move the last digits; a damaged
// network moves the first.
inline constexpr float kGoldenTolerance = 1e-3f;

struct ServableManifest {
  std::string model;
  uint64_t version = 0;  // = training step
  uint64_t epoch = 0;    // completed epochs
  std::string architecture;
  uint32_t channels = 0;
  uint32_t height = 0;  // pixels
  uint32_t width = 0;   // pixels
  OutputKind output_kind = OutputKind::kProbabilities;
  uint32_t classes = 0;                 // 0 for a reconstruction
  uint64_t parameter_count = 0;         // elements of the flat vector: trainable parameters, then statistics
  std::vector<std::string> statistics;  // the module's buffers at the end of the flat vector, in order
  std::string weights_sha256;           // of the flat vector
  std::optional<v1::Evaluation> validation;
  std::optional<v1::Evaluation> test;
  // Of validation images and the exporter's answers to them: what later ones are compared with.
  std::optional<Distribution> reference = std::nullopt;
  // The fingerprint: what the bits of the weights depend on.
  uint64_t seed = 0;
  std::string dataset_fingerprint;
  std::string torch_version;
  std::string cpu_capability;
  GoldenPredictions golden;
  std::vector<ManifestFile> files;

  // bytes per image
  uint64_t image_size() const { return uint64_t{channels} * height * width; }
  // Numbers in the answer for one image: the probabilities, or the reconstruction and its error.
  uint64_t values_per_row() const { return output_kind == OutputKind::kProbabilities ? classes : image_size() + 1; }
  // SHA-256 of model.pt; empty if the manifest names none.
  std::string_view model_sha256() const;
};

std::string ManifestToJson(const ServableManifest& manifest);

// Strict: INVALID_ARGUMENT that names the field for anything missing, of the wrong type or out of range, and for a
// format other than kManifestFormat.
absl::StatusOr<ServableManifest> ManifestFromJson(std::string_view json);

// Whether a file of this name lies inside the version's directory and is not hidden.
bool IsPlainFileName(std::string_view name);

// kGoldenImageCount images, uint8 [images, channels, height, width], the same in every process: Philox noise.
std::vector<uint8_t> GoldenImages(uint32_t channels, uint32_t height, uint32_t width);

}  // namespace millrace
