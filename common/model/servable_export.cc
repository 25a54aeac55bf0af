#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/model/network.h"
#include "common/model/runtime.h"
#include "common/model/servable.h"
#include "common/model/torch_status.h"
#include "common/model_name.h"
#include "common/networks.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kReferencePiece = 64;  // rows computed at once

absl::Status CheckOptions(const ExportOptions& options) {
  MILLRACE_RETURN_IF_ERROR(CheckModelName("model_name", options.model_name));
  if (options.version == 0) return absl::InvalidArgumentError("a model version is at least 1");
  for (size_t i = 0; i < options.parameters.size(); ++i) {
    if (!std::isfinite(options.parameters[i])) {
      return absl::FailedPreconditionError(absl::StrFormat("version %u of %s is not exported: weight %u is %f",
                                                           options.version, options.model_name, i,
                                                           options.parameters[i]));
    }
  }
  return absl::OkStatus();
}

std::string TritonOutputs(const v1::NetworkSpec& network) {
  if (Classifies(network)) {
    return absl::StrFormat("output [{ name: \"%s\" data_type: TYPE_FP32 dims: [ %u ] }]\n", kOutputName,
                           network.classes());
  }
  return absl::StrFormat(
      "output [{ name: \"%s\" data_type: TYPE_FP32 dims: [ %u, %u, %u ] },\n"
      "        { name: \"%s\" data_type: TYPE_FP32 dims: [ 1 ] }]\n",
      kOutputName, network.channels(), network.height(), network.width(), kErrorName);
}

// Triton's view of the model. It reads the one above the version directories; the one inside is the version's record.
std::string TritonConfig(const ExportOptions& options) {
  return absl::StrFormat(
      "name: \"%s\"\n"
      "platform: \"pytorch_libtorch\"\n"
      "max_batch_size: %u\n"
      "input [{ name: \"%s\" data_type: TYPE_UINT8 dims: [ %u, %u, %u ] }]\n"
      "%s",
      options.model_name, kPredictRowsMax, kInputName, options.network.channels(), options.network.height(),
      options.network.width(), TritonOutputs(options.network));
}

// The module with its weights as plain tensors of their own, ready to be saved.
absl::StatusOr<Network> NetworkWithWeights(const ExportOptions& options) {
  MILLRACE_ASSIGN_OR_RETURN(Network network, BuildNetwork(options.network));
  if (network.table.size() != options.parameters.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("network has ", network.table.size(), " parameters, got ", options.parameters.size()));
  }
  for (size_t i = 0; i < network.table.parameters().size(); ++i) {
    const ParameterInfo& info = network.table.parameters()[i];
    at::Tensor weights = torch::empty(info.shape, torch::kFloat32);
    std::memcpy(weights.data_ptr<float>(), options.parameters.data() + info.offset, info.size * sizeof(float));
    network.tensor(i).set_data(weights);
  }
  network.module.eval();
  return network;
}

GoldenPredictions PredictGolden(const ExportOptions& options, torch::jit::Module& module) {
  const v1::NetworkSpec& spec = options.network;
  std::vector<uint8_t> images = GoldenImages(spec.channels(), spec.height(), spec.width());
  const at::Tensor input = torch::from_blob(
      images.data(),
      {int64_t{kGoldenImageCount}, int64_t{spec.channels()}, int64_t{spec.height()}, int64_t{spec.width()}},
      torch::kUInt8);
  torch::InferenceMode inference;
  const at::Tensor output = AnswerRows(module.forward({input}));
  const float* values = output.data_ptr<float>();
  return {kGoldenImageCount, std::vector<float>(values, values + output.numel())};
}

std::optional<Distribution> ReferenceOf(const ExportOptions& options, torch::jit::Module& module) {
  const v1::NetworkSpec& spec = options.network;
  const size_t image_size = size_t{spec.channels()} * spec.height() * spec.width();
  const size_t rows = options.reference_images.size() / image_size;
  if (rows == 0) return std::nullopt;
  Distribution reference{.classes = std::vector<uint64_t>(Classifies(spec) ? spec.classes() : 0)};
  torch::InferenceMode inference;
  for (size_t begin = 0; begin < rows; begin += kReferencePiece) {
    const size_t piece = std::min(kReferencePiece, rows - begin);
    const std::span<const uint8_t> images = options.reference_images.subspan(begin * image_size, piece * image_size);
    const at::Tensor input = torch::from_blob(
        const_cast<uint8_t*>(images.data()),  // only read
        {static_cast<int64_t>(piece), int64_t{spec.channels()}, int64_t{spec.height()}, int64_t{spec.width()}},
        torch::kUInt8);
    const at::Tensor output = AnswerRows(module.forward({input}));
    reference.Add(std::span<const float>(output.data_ptr<float>(), static_cast<size_t>(output.numel())), images, piece);
  }
  return reference;
}

absl::Status WriteListed(const std::string& directory, const char* name, const std::string& contents,
                         ServableManifest& manifest) {
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/", name), contents));
  manifest.files.push_back({name, contents.size(), Sha256Hex(contents)});
  return absl::OkStatus();
}

absl::Status WriteVersion(const ExportOptions& options, const std::string& directory, ServableManifest manifest) {
  MILLRACE_ASSIGN_OR_RETURN(Network network, NetworkWithWeights(options));
  std::ostringstream model;
  for (size_t i = network.parameters.size(); i < network.table.parameters().size(); ++i) {
    manifest.statistics.push_back(absl::StrCat("network.", network.table.parameters()[i].name));
  }
  MILLRACE_RETURN_IF_ERROR(CatchTorch("exporting the model", [&]() -> absl::Status {
    manifest.golden = PredictGolden(options, network.module);
    manifest.reference = ReferenceOf(options, network.module);
    network.module.save(model);
    return absl::OkStatus();
  }));
  MILLRACE_RETURN_IF_ERROR(WriteListed(directory, kModelFile, std::move(model).str(), manifest));
  MILLRACE_RETURN_IF_ERROR(WriteListed(directory, "config.pbtxt", TritonConfig(options), manifest));
  const std::string json = ManifestToJson(manifest);
  if (options.signing_key != nullptr) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string signature, options.signing_key->Sign(json));
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/", kSignatureFile), signature + "\n"));
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kManifestFile), json);
}

// OK and true: this version is there with these weights. NOT_FOUND is no error here.
absl::StatusOr<bool> IsThere(const std::string& directory, const std::string& weights_sha256) {
  absl::StatusOr<std::string> json = ReadFile(absl::StrCat(directory, "/", kManifestFile), kManifestBytesMax);
  if (absl::IsNotFound(json.status())) return false;
  MILLRACE_RETURN_IF_ERROR(json.status());
  absl::StatusOr<ServableManifest> manifest = ManifestFromJson(*json);
  if (manifest.ok() && manifest->weights_sha256 == weights_sha256) return true;
  return absl::AlreadyExistsError(
      absl::StrCat(directory, " holds ",
                   manifest.ok() ? absl::StrCat("other weights (", manifest->weights_sha256, ")")
                                 : absl::StrCat("a version that cannot be read (", manifest.status().message(), ")"),
                   "; this job's are ", weights_sha256));
}

}  // namespace

std::string WeightsSha256(std::span<const float> parameters) { return Sha256Hex(std::as_bytes(parameters)); }

absl::StatusOr<ExportedServable> ExportServable(const ExportOptions& options) {
  MILLRACE_RETURN_IF_ERROR(CheckOptions(options));
  ConfigureTorchThread();
  const std::string parent = absl::StrCat(options.repository, "/", options.model_name);
  ExportedServable exported{.directory = absl::StrCat(parent, "/", options.version),
                            .weights_sha256 = WeightsSha256(options.parameters)};
  MILLRACE_ASSIGN_OR_RETURN(exported.already_there, IsThere(exported.directory, exported.weights_sha256));
  if (exported.already_there) return exported;

  const bool classifies = Classifies(options.network);
  const ServableManifest manifest{.model = options.model_name,
                                  .version = options.version,
                                  .epoch = options.epoch,
                                  .architecture = options.network.architecture(),
                                  .channels = options.network.channels(),
                                  .height = options.network.height(),
                                  .width = options.network.width(),
                                  .output_kind = classifies ? OutputKind::kProbabilities : OutputKind::kReconstruction,
                                  .classes = classifies ? options.network.classes() : 0,
                                  .parameter_count = options.parameters.size(),
                                  .statistics = {},
                                  .weights_sha256 = exported.weights_sha256,
                                  .validation = options.validation,
                                  .test = options.test,
                                  .seed = options.seed,
                                  .dataset_fingerprint = options.dataset_fingerprint,
                                  .torch_version = TorchVersion(),
                                  .cpu_capability = CpuCapability(),
                                  .golden = {},  // these and the statistics by WriteVersion
                                  .files = {}};
  const std::string temporary = absl::StrCat(parent, "/.", options.version, ".tmp");
  MILLRACE_RETURN_IF_ERROR(RemoveTree(temporary));  // of an exporter that died
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(temporary));
  absl::Status status = WriteVersion(options, temporary, manifest);
  if (status.ok()) status = WriteFileAtomically(absl::StrCat(parent, "/config.pbtxt"), TritonConfig(options));
  if (status.ok()) status = RenameDurably(temporary, exported.directory);
  if (!status.ok()) {
    RemoveTree(temporary).IgnoreError();  // the first error is the one to report
    return status;
  }
  return exported;
}

}  // namespace millrace
