#include "common/model/manifest.h"

#include <cmath>
#include <exception>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxFiles = 64;
constexpr uint32_t kMaxGoldenImages = 1024;
constexpr char kReconstruction[] = "reconstruction";
constexpr char kProbabilities[] = "probabilities";

Json EvaluationToJson(const v1::Evaluation& evaluation) {
  Json json = {{"loss", evaluation.loss()}};
  if (evaluation.has_accuracy()) json["accuracy"] = evaluation.accuracy();
  json["samples"] = evaluation.samples();
  return json;
}

const char* NameOf(OutputKind kind) { return kind == OutputKind::kReconstruction ? kReconstruction : kProbabilities; }

Json Tensor(const char* name, Json datatypes, Json shape) {
  return {{"name", name}, {"datatypes", std::move(datatypes)}, {"shape", std::move(shape)}};
}

Json OutputsToJson(const ServableManifest& manifest) {
  const Json fp32 = Json::array({"FP32"});
  if (manifest.output_kind == OutputKind::kProbabilities) {
    return Json::array({Tensor(kOutputName, fp32, {-1, manifest.classes})});
  }
  return Json::array({Tensor(kOutputName, fp32, {-1, manifest.channels, manifest.height, manifest.width}),
                      Tensor(kErrorName, fp32, {-1, 1})});
}

// Strict access by field name; every error names the field. nlohmann's own exceptions are not used: a missing field
// must say which one.
template <typename T>
absl::Status Read(const Json& object, const char* field, T& out) {
  const auto found = object.find(field);
  if (found == object.end()) return absl::InvalidArgumentError(absl::StrCat("manifest field ", field, " is missing"));
  const bool fits = std::is_same_v<T, std::string> ? found->is_string()
                    : std::is_floating_point_v<T>  ? found->is_number()
                                                   : found->is_number_unsigned();
  if (!fits) return absl::InvalidArgumentError(absl::StrCat("manifest field ", field, " has the wrong type"));
  out = found->get<T>();
  return absl::OkStatus();
}

absl::StatusOr<const Json*> Child(const Json& object, const char* field, Json::value_t type) {
  const auto found = object.find(field);
  if (found == object.end() || found->type() != type) {
    return absl::InvalidArgumentError(absl::StrCat("manifest field ", field, " is missing or has the wrong type"));
  }
  return &*found;
}

absl::Status ReadEvaluation(const Json& metrics, const char* field, const ServableManifest& manifest,
                            std::optional<v1::Evaluation>& out) {
  if (!metrics.contains(field)) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(const Json* values, Child(metrics, field, Json::value_t::object));
  double loss = 0;
  uint64_t samples = 0;
  // A diverged loss is written as null: JSON has no NaN.
  if (values->contains("loss") && (*values)["loss"].is_null()) {
    loss = std::nan("");
  } else {
    MILLRACE_RETURN_IF_ERROR(Read(*values, "loss", loss));
  }
  MILLRACE_RETURN_IF_ERROR(Read(*values, "samples", samples));
  out.emplace();
  out->set_version(manifest.version);
  out->set_epoch(manifest.epoch);
  out->set_loss(loss);
  out->set_samples(samples);
  if (manifest.output_kind == OutputKind::kProbabilities) {
    double accuracy = 0;
    MILLRACE_RETURN_IF_ERROR(Read(*values, "accuracy", accuracy));
    out->set_accuracy(accuracy);
  }
  return absl::OkStatus();
}

// Of the `count` tensors of "inputs" or "outputs" the one at `index`: its name must be `name` and its shape [-1, ...]
// with `rank` more dimensions, which are returned.
absl::StatusOr<std::vector<uint32_t>> ReadTensor(const Json& root, const char* field, size_t count, size_t index,
                                                 const char* name, size_t rank) {
  MILLRACE_ASSIGN_OR_RETURN(const Json* tensors, Child(root, field, Json::value_t::array));
  if (tensors->size() != count || !(*tensors)[index].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest field ", field, " must hold ", count == 1 ? "one tensor" : "two tensors"));
  }
  const Json& tensor = (*tensors)[index];
  std::string found_name;
  MILLRACE_RETURN_IF_ERROR(Read(tensor, "name", found_name));
  MILLRACE_ASSIGN_OR_RETURN(const Json* shape, Child(tensor, "shape", Json::value_t::array));
  const bool batched = shape->size() == rank + 1 && shape->front() == -1;
  if (found_name != name || !batched) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest field ", field, " must be ", name, " of shape [-1, and ", rank, " dimensions]"));
  }
  std::vector<uint32_t> dimensions;
  for (size_t i = 1; i < shape->size(); ++i) {
    const Json& dimension = (*shape)[i];
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() < 1 || dimension.get<uint64_t>() > 65536) {
      return absl::InvalidArgumentError(absl::StrCat("manifest field ", field, " has a dimension outside [1, 65536]"));
    }
    dimensions.push_back(dimension.get<uint32_t>());
  }
  return dimensions;
}

absl::Status ReadSignature(const Json& root, ServableManifest& manifest) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> input, ReadTensor(root, "inputs", 1, 0, kInputName, 3));
  manifest.channels = input[0];
  manifest.height = input[1];
  manifest.width = input[2];
  std::string kind = kProbabilities;  // also of versions from before there was another
  if (root.contains("output_kind")) MILLRACE_RETURN_IF_ERROR(Read(root, "output_kind", kind));
  if (kind == kProbabilities) {
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> output, ReadTensor(root, "outputs", 1, 0, kOutputName, 1));
    manifest.classes = output[0];
    return absl::OkStatus();
  }
  if (kind != kReconstruction) {
    return absl::InvalidArgumentError(absl::StrCat("manifest field output_kind is ", kind, ", which is not known"));
  }
  manifest.output_kind = OutputKind::kReconstruction;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> image, ReadTensor(root, "outputs", 2, 0, kOutputName, 3));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<uint32_t> error, ReadTensor(root, "outputs", 2, 1, kErrorName, 1));
  if (image != input || error[0] != 1) {
    return absl::InvalidArgumentError("manifest field outputs must be an image like the input's and one error");
  }
  return absl::OkStatus();
}

absl::Status ReadStatistics(const Json& root, ServableManifest& manifest) {
  if (!root.contains("statistics")) return absl::OkStatus();  // a network without any
  MILLRACE_ASSIGN_OR_RETURN(const Json* names, Child(root, "statistics", Json::value_t::array));
  for (const Json& name : *names) {
    if (!name.is_string()) return absl::InvalidArgumentError("manifest field statistics has an entry that is no name");
    manifest.statistics.push_back(name.get<std::string>());
  }
  return absl::OkStatus();
}

// As many bins as `bins` has, which together hold `rows`.
absl::Status ReadBins(const Json& reference, const char* field, uint64_t rows, std::span<uint64_t> bins) {
  MILLRACE_ASSIGN_OR_RETURN(const Json* counts, Child(reference, field, Json::value_t::array));
  bool good = counts->size() == bins.size();
  uint64_t total = 0;
  for (size_t i = 0; good && i < bins.size(); ++i) {
    const Json& count = (*counts)[i];
    good = count.is_number_unsigned() && count.get<uint64_t>() <= rows;
    if (good) total += bins[i] = count.get<uint64_t>();
  }
  if (good && total == rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("manifest field reference.", field, " must hold ", bins.size(),
                                                 " counts that add up to reference.rows, ", rows));
}

absl::Status ReadReference(const Json& root, ServableManifest& manifest) {
  if (!root.contains("reference")) return absl::OkStatus();  // none could be had, or the version is from before them
  MILLRACE_ASSIGN_OR_RETURN(const Json* reference, Child(root, "reference", Json::value_t::object));
  Distribution& read = manifest.reference.emplace();
  MILLRACE_RETURN_IF_ERROR(Read(*reference, "rows", read.rows));
  if (read.rows < 1 || read.rows > UINT32_MAX) {
    return absl::InvalidArgumentError("manifest field reference.rows must be in [1, 2^32)");
  }
  MILLRACE_RETURN_IF_ERROR(ReadBins(*reference, "ink", read.rows, read.ink));
  if (manifest.output_kind != OutputKind::kProbabilities) return absl::OkStatus();
  read.classes.resize(manifest.classes);
  MILLRACE_RETURN_IF_ERROR(ReadBins(*reference, "classes", read.rows, read.classes));
  return ReadBins(*reference, "confidence", read.rows, read.confidence);
}

absl::Status ReadGolden(const Json& root, ServableManifest& manifest) {
  const char* const field = NameOf(manifest.output_kind);
  MILLRACE_ASSIGN_OR_RETURN(const Json* golden, Child(root, "golden", Json::value_t::object));
  MILLRACE_RETURN_IF_ERROR(Read(*golden, "images", manifest.golden.images));
  MILLRACE_ASSIGN_OR_RETURN(const Json* values, Child(*golden, field, Json::value_t::array));
  if (manifest.golden.images < 1 || manifest.golden.images > kMaxGoldenImages ||
      values->size() != manifest.golden.images * manifest.values_per_row()) {
    return absl::InvalidArgumentError(absl::StrCat("manifest field golden.", field, " has the wrong number of values"));
  }
  for (const Json& value : *values) {
    if (!value.is_number()) {
      return absl::InvalidArgumentError(absl::StrCat("manifest field golden.", field, " has a non-number"));
    }
    manifest.golden.values.push_back(value.get<float>());
  }
  return absl::OkStatus();
}

absl::Status ReadFiles(const Json& root, ServableManifest& manifest) {
  MILLRACE_ASSIGN_OR_RETURN(const Json* files, Child(root, "files", Json::value_t::array));
  if (files->size() > kMaxFiles) return absl::InvalidArgumentError("manifest field files has more than 64 entries");
  for (const Json& entry : *files) {
    if (!entry.is_object()) return absl::InvalidArgumentError("manifest field files has an entry that is no object");
    ManifestFile file;
    MILLRACE_RETURN_IF_ERROR(Read(entry, "name", file.name));
    MILLRACE_RETURN_IF_ERROR(Read(entry, "bytes", file.bytes));
    MILLRACE_RETURN_IF_ERROR(Read(entry, "sha256", file.sha256));
    if (!IsPlainFileName(file.name)) {
      return absl::InvalidArgumentError("manifest field files has a name that is not a plain file name");
    }
    manifest.files.push_back(std::move(file));
  }
  if (manifest.model_sha256().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("manifest field files does not name ", kModelFile));
  }
  return absl::OkStatus();
}

absl::StatusOr<ServableManifest> Parse(const Json& root) {
  ServableManifest manifest;
  int format = 0;
  if (!root.is_object()) return absl::InvalidArgumentError("manifest is not a JSON object");
  MILLRACE_RETURN_IF_ERROR(Read(root, "format", format));
  if (format != kManifestFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest format ", format, " is not the known format ", kManifestFormat));
  }
  MILLRACE_RETURN_IF_ERROR(Read(root, "model", manifest.model));
  MILLRACE_RETURN_IF_ERROR(Read(root, "version", manifest.version));
  MILLRACE_RETURN_IF_ERROR(Read(root, "epoch", manifest.epoch));
  MILLRACE_RETURN_IF_ERROR(Read(root, "architecture", manifest.architecture));
  MILLRACE_RETURN_IF_ERROR(Read(root, "parameter_count", manifest.parameter_count));
  MILLRACE_RETURN_IF_ERROR(Read(root, "weights_sha256", manifest.weights_sha256));
  MILLRACE_RETURN_IF_ERROR(ReadSignature(root, manifest));
  MILLRACE_RETURN_IF_ERROR(ReadStatistics(root, manifest));
  MILLRACE_ASSIGN_OR_RETURN(const Json* metrics, Child(root, "metrics", Json::value_t::object));
  MILLRACE_RETURN_IF_ERROR(ReadEvaluation(*metrics, "validation", manifest, manifest.validation));
  MILLRACE_RETURN_IF_ERROR(ReadEvaluation(*metrics, "test", manifest, manifest.test));
  MILLRACE_ASSIGN_OR_RETURN(const Json* fingerprint, Child(root, "fingerprint", Json::value_t::object));
  MILLRACE_RETURN_IF_ERROR(Read(*fingerprint, "seed", manifest.seed));
  MILLRACE_RETURN_IF_ERROR(Read(*fingerprint, "dataset", manifest.dataset_fingerprint));
  MILLRACE_RETURN_IF_ERROR(Read(*fingerprint, "torch", manifest.torch_version));
  MILLRACE_RETURN_IF_ERROR(Read(*fingerprint, "cpu_capability", manifest.cpu_capability));
  MILLRACE_RETURN_IF_ERROR(ReadReference(root, manifest));
  MILLRACE_RETURN_IF_ERROR(ReadGolden(root, manifest));
  MILLRACE_RETURN_IF_ERROR(ReadFiles(root, manifest));
  return manifest;
}

}  // namespace

std::string_view ServableManifest::model_sha256() const {
  for (const ManifestFile& file : files) {
    if (file.name == kModelFile) return file.sha256;
  }
  return {};
}

std::string ManifestToJson(const ServableManifest& manifest) {
  Json metrics = Json::object();
  if (manifest.validation) metrics["validation"] = EvaluationToJson(*manifest.validation);
  if (manifest.test) metrics["test"] = EvaluationToJson(*manifest.test);
  Json files = Json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  Json root = {
      {"format", kManifestFormat},
      {"model", manifest.model},
      {"version", manifest.version},
      {"epoch", manifest.epoch},
      {"architecture", manifest.architecture},
      {"parameter_count", manifest.parameter_count},
      {"weights_sha256", manifest.weights_sha256},
      {"inputs",
       Json::array({Tensor(kInputName, {"UINT8", "FP32"}, {-1, manifest.channels, manifest.height, manifest.width})})},
      {"output_kind", NameOf(manifest.output_kind)},
      {"outputs", OutputsToJson(manifest)},
      {"metrics", std::move(metrics)},
      {"fingerprint",
       {{"seed", manifest.seed},
        {"dataset", manifest.dataset_fingerprint},
        {"torch", manifest.torch_version},
        {"cpu_capability", manifest.cpu_capability}}},
      {"golden", {{"images", manifest.golden.images}, {NameOf(manifest.output_kind), manifest.golden.values}}},
      {"files", std::move(files)},
  };
  if (manifest.reference) {
    root["reference"] = {{"rows", manifest.reference->rows}, {"ink", manifest.reference->ink}};
    if (manifest.output_kind == OutputKind::kProbabilities) {
      root["reference"]["classes"] = manifest.reference->classes;
      root["reference"]["confidence"] = manifest.reference->confidence;
    }
  }
  if (!manifest.statistics.empty()) root["statistics"] = manifest.statistics;
  return root.dump(2) + "\n";
}

absl::StatusOr<ServableManifest> ManifestFromJson(std::string_view json) {
  const Json root = Json::parse(json, /*callback=*/nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return absl::InvalidArgumentError("manifest is not JSON");
  return Parse(root);
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

std::vector<uint8_t> GoldenImages(uint32_t channels, uint32_t height, uint32_t width) {
  constexpr uint64_t kSeed = 0x676f6c64656e;  // "golden"; a change of it is a change of kManifestFormat
  std::vector<uint8_t> images(size_t{kGoldenImageCount} * channels * height * width);
  PhiloxStream random(kSeed, /*stream=*/0);
  for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.NextUint32() >> 24);
  return images;
}

}  // namespace millrace
