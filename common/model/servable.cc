#include "common/model/servable.h"

#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/model/attribution.h"
#include "common/model/network.h"
#include "common/model/runtime.h"
#include "common/model/torch_status.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{4} << 30;
constexpr char kRefusalPayload[] = "millrace.dev/refusal";

absl::Status Refuse(RefusalReason reason, std::string_view message) {
  absl::Status status =
      absl::FailedPreconditionError(absl::StrCat(ToAbsl(RefusalReasonName(reason)), ": ", ToAbsl(message)));
  status.SetPayload(kRefusalPayload, absl::Cord(std::to_string(static_cast<int>(reason))));
  return status;
}

// Reads a file that the manifest lists and checks size and digest. The same bytes are then used: nobody can change them
// between check and use.
absl::StatusOr<std::string> ReadVerified(const std::string& directory, const ManifestFile& file) {
  if (file.bytes > kMaxFileBytes) {
    return Refuse(RefusalReason::kFormat,
                  absl::StrCat(file.name, " of ", file.bytes, " bytes is over the limit of ", kMaxFileBytes));
  }
  absl::StatusOr<std::string> bytes = ReadFile(absl::StrCat(directory, "/", file.name), file.bytes);
  if (absl::IsNotFound(bytes.status())) return Refuse(RefusalReason::kTorn, absl::StrCat(file.name, " is missing"));
  if (absl::IsOutOfRange(bytes.status())) {
    return Refuse(RefusalReason::kTorn,
                  absl::StrCat(file.name, " is longer than the ", file.bytes, " bytes of the manifest"));
  }
  MILLRACE_RETURN_IF_ERROR(bytes.status());
  if (bytes->size() != file.bytes) {
    return Refuse(RefusalReason::kTorn,
                  absl::StrFormat("%s has %u bytes, the manifest says %u", file.name, bytes->size(), file.bytes));
  }
  const std::string digest = Sha256Hex(*bytes);
  if (digest != file.sha256) {
    return Refuse(RefusalReason::kDigest,
                  absl::StrFormat("%s has SHA-256 %s, the manifest says %s", file.name, digest, file.sha256));
  }
  return bytes;
}

absl::Status CheckSignature(const std::string& directory, const std::string& manifest, const TrustedKeys& trusted) {
  const absl::StatusOr<std::string> signature =
      ReadFile(absl::StrCat(directory, "/", kSignatureFile), kSignatureBytesMax);
  if (absl::IsNotFound(signature.status())) {
    return Refuse(RefusalReason::kUntrusted, absl::StrCat("there is no ", kSignatureFile));
  }
  MILLRACE_RETURN_IF_ERROR(signature.status());
  if (trusted.Signed(manifest, *signature)) return absl::OkStatus();
  return Refuse(RefusalReason::kUntrusted, absl::StrCat("no trusted key has signed this ", kManifestFile));
}

absl::Status CheckFinite(const torch::jit::Module& module) {
  for (const auto& parameter : module.named_parameters()) {
    if (parameter.value.is_floating_point() && !torch::isfinite(parameter.value).all().item<bool>()) {
      return Refuse(RefusalReason::kNotFinite, absl::StrCat(parameter.name, " holds a NaN or an infinity"));
    }
  }
  for (const auto& buffer : module.named_buffers()) {
    if (buffer.value.is_floating_point() && !torch::isfinite(buffer.value).all().item<bool>()) {
      return Refuse(RefusalReason::kNotFinite, absl::StrCat(buffer.name, " holds a NaN or an infinity"));
    }
  }
  return absl::OkStatus();
}

// The flat vector's tensors as training knows them: trainable parameters, then the statistics that the manifest names.
absl::StatusOr<std::vector<std::pair<std::string, at::Tensor>>> FlatTensors(const torch::jit::Module& module,
                                                                            const ServableManifest& manifest) {
  std::vector<std::pair<std::string, at::Tensor>> tensors = TrainableParameters(module);
  const auto buffers = Buffers(module);
  for (const std::string& name : manifest.statistics) {
    const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const auto& b) { return b.first == name; });
    if (found == buffers.end()) return Refuse(RefusalReason::kSignature, absl::StrCat("there is no buffer ", name));
    tensors.push_back(*found);
  }
  return tensors;
}

// The digest of the weights, recomputed from the tensors of the module.
absl::Status CheckWeights(const torch::jit::Module& module, const ServableManifest& manifest) {
  Sha256 digest;
  uint64_t count = 0;
  MILLRACE_ASSIGN_OR_RETURN(const auto tensors, FlatTensors(module, manifest));
  for (const auto& [name, value] : tensors) {
    if (value.scalar_type() != torch::kFloat32) {
      return Refuse(RefusalReason::kSignature, absl::StrCat("parameter ", name, " is not float32"));
    }
    const at::Tensor flat = value.detach().contiguous();
    digest.Update(std::as_bytes(std::span<const float>(flat.data_ptr<float>(), flat.numel())));
    count += flat.numel();
  }
  if (count != manifest.parameter_count) {
    return Refuse(RefusalReason::kSignature, absl::StrFormat("the module has %u parameters, the manifest says %u",
                                                             count, manifest.parameter_count));
  }
  if (digest.FinishHex() != manifest.weights_sha256) {
    return Refuse(RefusalReason::kDigest, "the module's weights are not those of the manifest");
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const at::Tensor& output, std::vector<int64_t> expected) {
  if (output.scalar_type() == torch::kFloat32 && output.sizes() == at::IntArrayRef(expected)) return absl::OkStatus();
  std::ostringstream text;
  text << expected[0] << " images give " << toString(output.scalar_type()) << " " << output.sizes()
       << " instead of Float " << at::IntArrayRef(expected);
  return Refuse(RefusalReason::kSignature, text.str());
}

absl::Status CheckOutput(const c10::IValue& output, int64_t rows, const ServableManifest& manifest) {
  if (manifest.output_kind == OutputKind::kProbabilities) {
    if (!output.isTensor()) return Refuse(RefusalReason::kSignature, "the module does not return one tensor");
    return CheckTensor(output.toTensor(), {rows, manifest.classes});
  }
  const bool pair = output.isTuple() && output.toTupleRef().elements().size() == 2 &&
                    output.toTupleRef().elements()[0].isTensor() && output.toTupleRef().elements()[1].isTensor();
  if (!pair) return Refuse(RefusalReason::kSignature, "the module does not return two tensors");
  const auto& elements = output.toTupleRef().elements();
  MILLRACE_RETURN_IF_ERROR(
      CheckTensor(elements[0].toTensor(), {rows, manifest.channels, manifest.height, manifest.width}));
  return CheckTensor(elements[1].toTensor(), {rows, 1});
}

}  // namespace

struct ServableModel::State {
  ServableManifest manifest;
  torch::jit::Module module;

  c10::IValue Forward(const at::Tensor& pixels) const {
    // Module::forward is not const; the frozen graph has no state to change.
    return const_cast<torch::jit::Module&>(module).forward({pixels});
  }

  template <typename Pixel>
  at::Tensor Pixels(std::span<const Pixel> images, size_t rows) const {
    return torch::from_blob(
        const_cast<Pixel*>(images.data()),
        {static_cast<int64_t>(rows), int64_t{manifest.channels}, int64_t{manifest.height}, int64_t{manifest.width}},
        c10::CppTypeToScalarType<Pixel>::value);
  }

  // The manifest's own images must give the manifest's own answers, from both kinds of input, and also alone: the
  // module may compute one row in another way than several.
  absl::Status CheckGolden() const {
    const std::vector<uint8_t> images = GoldenImages(manifest.channels, manifest.height, manifest.width);
    const at::Tensor pixels = Pixels(std::span(images), kGoldenImageCount);
    MILLRACE_RETURN_IF_ERROR(CheckAnswer(pixels, manifest.golden.values));
    MILLRACE_RETURN_IF_ERROR(CheckAnswer(pixels.to(torch::kFloat32), manifest.golden.values));
    return CheckAnswer(pixels.narrow(0, 0, 1), std::span(manifest.golden.values).first(manifest.values_per_row()));
  }

  // `input` holds the first of the golden images.
  absl::Status CheckAnswer(const at::Tensor& input, std::span<const float> expected) const {
    c10::IValue answer;
    try {
      answer = Forward(input);
    } catch (const std::exception& error) {
      return Refuse(RefusalReason::kSignature, absl::StrCat("the module does not take ", toString(input.scalar_type()),
                                                            " images: ", FirstLine(error.what())));
    }
    MILLRACE_RETURN_IF_ERROR(CheckOutput(answer, input.size(0), manifest));
    const at::Tensor output = AnswerRows(answer);
    const float* values = output.data_ptr<float>();
    for (size_t i = 0; i < expected.size(); ++i) {
      // Written so that a NaN fails.
      if (!(std::abs(values[i] - expected[i]) <= kGoldenTolerance)) {
        const uint64_t per_row = manifest.values_per_row();
        const bool classifies = manifest.output_kind == OutputKind::kProbabilities;
        return Refuse(RefusalReason::kGolden,
                      absl::StrFormat("image %u %s %g, the manifest says %g", i / per_row,
                                      classifies ? absl::StrFormat("class %u has probability", i % per_row)
                                                 : absl::StrFormat("value %u is", i % per_row),
                                      values[i], expected[i]));
      }
    }
    return absl::OkStatus();
  }
};

std::string_view RefusalReasonName(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kTorn:
      return "torn";
    case RefusalReason::kDigest:
      return "digest";
    case RefusalReason::kFormat:
      return "format";
    case RefusalReason::kSignature:
      return "signature";
    case RefusalReason::kNotFinite:
      return "not_finite";
    case RefusalReason::kGolden:
      return "golden";
    case RefusalReason::kUntrusted:
      return "untrusted";
  }
  return "unknown";
}

std::optional<RefusalReason> RefusalReasonOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRefusalPayload);
  if (!payload.has_value()) return std::nullopt;
  return static_cast<RefusalReason>(std::stoi(std::string(*payload)));
}

absl::StatusOr<std::shared_ptr<const ServableModel>> ServableModel::Load(const std::string& version_directory) {
  return Load(version_directory, LoadOptions());
}

absl::StatusOr<std::shared_ptr<const ServableModel>> ServableModel::Load(const std::string& version_directory,
                                                                         const LoadOptions& options) {
  ConfigureTorchThread();
  MILLRACE_ASSIGN_OR_RETURN(const std::string json,
                            ReadFile(absl::StrCat(version_directory, "/", kManifestFile), kManifestBytesMax));
  if (options.trusted_keys != nullptr) {
    MILLRACE_RETURN_IF_ERROR(CheckSignature(version_directory, json, *options.trusted_keys));
  }
  absl::StatusOr<ServableManifest> manifest = ManifestFromJson(json);
  if (!manifest.ok()) return Refuse(RefusalReason::kFormat, ToStd(manifest.status().message()));
  if (manifest->golden.images != kGoldenImageCount) {
    return Refuse(RefusalReason::kFormat, "the manifest has another number of golden images");
  }
  std::string model;
  for (const ManifestFile& file : manifest->files) {
    MILLRACE_ASSIGN_OR_RETURN(std::string bytes, ReadVerified(version_directory, file));
    if (file.name == kModelFile) model = std::move(bytes);
  }

  auto state = std::make_unique<State>();
  state->manifest = *std::move(manifest);
  MILLRACE_RETURN_IF_ERROR(CatchTorch("loading the model", [&]() -> absl::Status {
    std::istringstream stream(std::move(model));
    try {
      state->module = torch::jit::load(stream, torch::kCPU);
    } catch (const std::exception& error) {
      return Refuse(RefusalReason::kSignature,
                    absl::StrCat(kModelFile, " is not a TorchScript module: ", FirstLine(error.what())));
    }
    torch::NoGradGuard no_grad;  // not InferenceMode: explanations differentiate through what freezing computes
    MILLRACE_RETURN_IF_ERROR(CheckFinite(state->module));
    MILLRACE_RETURN_IF_ERROR(CheckWeights(state->module, state->manifest));
    MILLRACE_RETURN_IF_ERROR(state->CheckGolden());
    state->module.eval();
    // Freezing only: optimize_for_inference converts to and from oneDNN's own layout around the convolution, which made
    // 32 images take 2.9 ms instead of 1.7.
    state->module = torch::jit::freeze(state->module);
    MILLRACE_RETURN_IF_ERROR(state->CheckGolden());
    for (size_t rows = 1; rows <= options.max_warm_batch; rows *= 2) {
      std::vector<uint8_t> images(rows * state->manifest.image_size());
      state->Forward(state->Pixels(std::span<const uint8_t>(images), rows));
    }
    return absl::OkStatus();
  }));
  return std::shared_ptr<const ServableModel>(new ServableModel(std::move(state)));
}

ServableModel::ServableModel(std::unique_ptr<State> state) : state_(std::move(state)) {}
ServableModel::~ServableModel() = default;

const ServableManifest& ServableModel::manifest() const { return state_->manifest; }

absl::Status ServableModel::CheckImages(size_t pixels, size_t rows) const {
  const uint64_t image_size = state_->manifest.image_size();
  if (rows > 0 && pixels / rows == image_size && pixels % rows == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(pixels, " pixels are not ", rows, " images of ", image_size));
}

template <typename Pixel>
absl::StatusOr<std::vector<float>> ServableModel::PredictAny(std::span<const Pixel> images, size_t rows) const {
  MILLRACE_RETURN_IF_ERROR(CheckImages(images.size(), rows));
  ConfigureTorchThread();
  return CatchTorch("predicting", [&]() -> absl::StatusOr<std::vector<float>> {
    torch::InferenceMode inference;
    const at::Tensor output = AnswerRows(state_->Forward(state_->Pixels(images, rows)));
    const float* values = output.data_ptr<float>();
    return std::vector<float>(values, values + output.numel());
  });
}

absl::StatusOr<std::vector<float>> ServableModel::Predict(std::span<const uint8_t> images, size_t rows) const {
  return PredictAny(images, rows);
}

absl::StatusOr<std::vector<float>> ServableModel::Predict(std::span<const float> images, size_t rows) const {
  return PredictAny(images, rows);
}

absl::StatusOr<std::vector<Explanation>> ServableModel::Explain(std::span<const uint8_t> images, size_t rows,
                                                                const ExplainOptions& options) const {
  MILLRACE_RETURN_IF_ERROR(CheckImages(images.size(), rows));
  ConfigureTorchThread();
  return CatchTorch("explaining", [&] {
    const bool classifies = state_->manifest.output_kind == OutputKind::kProbabilities;
    const auto scores = [&](const at::Tensor& pixels) {
      const at::Tensor answers = AnswerRows(state_->Forward(pixels));
      return classifies ? answers : answers.narrow(1, answers.size(1) - 1, 1);
    };
    return Attribute(scores, state_->Pixels(images, rows).to(torch::kFloat32), options);
  });
}

}  // namespace millrace
