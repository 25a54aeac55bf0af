#include "common/model/network.h"

#include <cmath>
#include <cstring>
#include <sstream>
#include <unordered_set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/model/script_probe.h"
#include "common/model/torch_status.h"
#include "common/networks.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr uint32_t kMaxChannels = 16;
constexpr uint32_t kMaxSide = 1024;
constexpr size_t kMaxScriptBytes = size_t{1} << 30;

// For serving, where one row is the usual request. A matrix product makes OpenBLAS rearrange the whole weight matrix
// first, which for one row takes longer than all the rest: 320 us for the cnn instead of 125 us with this.
constexpr char kDenseSource[] = R"(
def dense(self, x, weight, bias):
    if x.size(0) == 1:
        return torch.addmv(bias, weight, x[0]).unsqueeze(0)
    return torch.linear(x, weight, bias)
)";

// The method `forward`, for training, as the method `predict`. Training keeps the one kernel for every number of rows:
// its bits are not to depend on how a step is divided.
std::string PredictSource(const BuiltIn& built_in) {
  return absl::StrReplaceAll(built_in.source, {{"def forward(", "def predict("}, {"torch.linear(", "self.dense("}});
}

absl::Status CheckSpec(const v1::NetworkSpec& spec) {
  if (spec.channels() < 1 || spec.channels() > kMaxChannels || spec.height() < 1 || spec.height() > kMaxSide ||
      spec.width() < 1 || spec.width() > kMaxSide) {
    return absl::InvalidArgumentError(
        absl::StrFormat("network input %ux%ux%u is outside [1, %u] channels and [1, %u] pixels a side", spec.channels(),
                        spec.height(), spec.width(), kMaxChannels, kMaxSide));
  }
  if (spec.classes() < 2 || spec.classes() > kClassesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("network with %u classes is outside [2, %u]", spec.classes(), kClassesMax));
  }
  if (!std::isfinite(spec.mean()) || !std::isfinite(spec.standard_deviation()) || spec.standard_deviation() <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("network normalisation needs a finite mean and a standard deviation "
                                                   "above 0, got ",
                                                   spec.mean(), " and ", spec.standard_deviation()));
  }
  return absl::OkStatus();
}

absl::StatusOr<Network> BuildBuiltIn(const v1::NetworkSpec& spec, torch::jit::Module& body) {
  MILLRACE_ASSIGN_OR_RETURN(const BuiltIn built_in, DescribeBuiltIn(spec));
  Network network;
  network.noise = built_in.noise;
  body.register_attribute("training", c10::BoolType::get(), true);
  for (const BuiltInTensor& parameter : built_in.parameters) {
    at::Tensor value = torch::zeros(parameter.shape, torch::requires_grad());
    body.register_parameter(parameter.name, value, /*is_buffer=*/false);
    MILLRACE_RETURN_IF_ERROR(network.table.Add(parameter.name, parameter.shape));
    network.parameters.push_back(std::move(value));
    network.initial.push_back(parameter.initial);
  }
  for (const BuiltInTensor& statistic : built_in.statistics) {
    at::Tensor value = torch::zeros(statistic.shape);
    body.register_buffer(statistic.name, value);
    MILLRACE_RETURN_IF_ERROR(network.table.AddStatistic(statistic.name, statistic.shape));
    network.statistics.push_back(std::move(value));
    network.initial.push_back(statistic.initial);
  }
  if (!built_in.helpers.empty()) body.define(built_in.helpers);
  body.define(built_in.source);
  body.define(kDenseSource);
  body.define(PredictSource(built_in));
  return network;
}

absl::StatusOr<torch::jit::Module> LoadScript(const v1::NetworkSpec& spec) {
  MILLRACE_ASSIGN_OR_RETURN(std::string bytes, ReadFile(spec.torchscript_path(), kMaxScriptBytes));
  if (!spec.torchscript_sha256().empty()) {
    const std::string digest = Sha256Hex(bytes);
    if (digest != spec.torchscript_sha256()) {
      return absl::FailedPreconditionError(absl::StrCat(spec.torchscript_path(), " has SHA-256 ", digest,
                                                        ", the job asks for ", spec.torchscript_sha256()));
    }
  }
  std::istringstream stream(std::move(bytes));
  try {
    return torch::jit::load(stream, torch::kCPU);
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.torchscript_path(), " is not a TorchScript module: ", FirstLine(error.what())));
  }
}

absl::StatusOr<Network> CollectScript(const std::string& path, torch::jit::Module& body) {
  Network network;
  for (const auto& [name, value] : TrainableParameters(body)) {
    if (value.scalar_type() != torch::kFloat32) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": parameter ", name, " is ", toString(value.scalar_type()),
                                                     "; only float32 can be trained"));
    }
    if (absl::Status status = network.table.Add(name, value.sizes().vec()); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
    }
    network.parameters.push_back(value);
  }
  if (network.parameters.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no parameter that requires a gradient"));
  }
  return network;
}

// A single channel is channels-last and channels-first at once; saying so by a view costs nothing and makes the
// convolution choose its channels-last kernel. (memory_format 2 is channels_last.)
std::string WrapperSource(const v1::NetworkSpec& spec) {
  const std::string layout =
      spec.channels() == 1 ? absl::StrFormat("x.reshape(x.size(0), %u, %u, 1).permute(0, 3, 1, 2).float()",
                                             spec.height(), spec.width())
                           : "x.float().contiguous(memory_format=2)";
  const double scale = 1.0 / (255.0 * spec.standard_deviation());
  const double shift = -spec.mean() / spec.standard_deviation();
  const std::string normalise =
      shift == 0 ? absl::StrFormat("x * %.17g", scale) : absl::StrFormat("x * %.17g + (%.17g)", scale, shift);
  const std::string predict =
      absl::StrCat("self.network.", spec.architecture() == ToAbsl(kTorchscript) ? "forward" : "predict",
                   "(self.normalised(INPUT__0))");
  const std::string serve =
      Classifies(spec) ? absl::StrCat("    return torch.softmax(", predict, ", 1)\n")
                       : absl::StrCat("    y = ", predict, "\n",
                                      "    error = (y - INPUT__0.float() / 255.0).flatten(1).square().mean(1)\n",
                                      "    return y, error.unsqueeze(1)\n");
  return absl::StrCat("def normalised(self, x):\n    x = ", layout, "\n    return ", normalise, "\n",
                      "def output(self, x):\n    return self.network.forward(self.normalised(x))\n",
                      "def forward(self, INPUT__0):\n", serve);
}

}  // namespace

std::vector<std::pair<std::string, at::Tensor>> TrainableParameters(const torch::jit::Module& module) {
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  std::unordered_set<const void*> seen;  // a tied weight is listed under each of its names
  for (const auto& parameter : module.named_parameters()) {
    if (parameter.value.requires_grad() && seen.insert(parameter.value.unsafeGetTensorImpl()).second) {
      parameters.emplace_back(parameter.name, parameter.value);
    }
  }
  return parameters;
}

std::vector<std::pair<std::string, at::Tensor>> Buffers(const torch::jit::Module& module) {
  std::vector<std::pair<std::string, at::Tensor>> buffers;
  std::unordered_set<const void*> seen;
  const auto add = [&](const auto& named) {
    if (seen.insert(named.value.unsafeGetTensorImpl()).second) buffers.emplace_back(named.name, named.value);
  };
  for (const auto& buffer : module.named_buffers()) add(buffer);
  for (const auto& parameter : module.named_parameters()) {
    if (!parameter.value.requires_grad()) add(parameter);
  }
  return buffers;
}

absl::StatusOr<Network> BuildNetwork(const v1::NetworkSpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckSpec(spec));
  return CatchTorch("building the network", [&]() -> absl::StatusOr<Network> {
    const bool script = spec.architecture() == ToAbsl(kTorchscript);
    torch::jit::Module body("__torch__.millrace.Network");
    if (script) {
      MILLRACE_ASSIGN_OR_RETURN(body, LoadScript(spec));
    }
    MILLRACE_ASSIGN_OR_RETURN(Network network,
                              script ? CollectScript(spec.torchscript_path(), body) : BuildBuiltIn(spec, body));
    network.module =
        torch::jit::Module(Classifies(spec) ? "__torch__.millrace.Classifier" : "__torch__.millrace.Autoencoder");
    network.module.register_attribute("training", c10::BoolType::get(), true);
    network.module.register_module("network", body);
    network.module.define(WrapperSource(spec));
    if (script) {
      MILLRACE_ASSIGN_OR_RETURN(const ScriptFindings findings, ProbeScript(spec, network.module, body));
      network.slot_samples_min = findings.slot_samples_min;
      for (const auto& [name, value] : findings.statistics) {
        MILLRACE_RETURN_IF_ERROR(network.table.AddStatistic(name, value.sizes().vec()));
        network.statistics.push_back(value);
      }
    }
    return network;
  });
}

at::Tensor AnswerRows(const c10::IValue& output) {
  if (output.isTensor()) return output.toTensor().contiguous();
  const auto& elements = output.toTupleRef().elements();
  return torch::cat({elements[0].toTensor().flatten(1), elements[1].toTensor()}, 1);
}

void BindParameters(Network& network, const at::Tensor& flat) {
  for (size_t i = 0; i < network.table.parameters().size(); ++i) {
    const ParameterInfo& info = network.table.parameters()[i];
    // set_data keeps the tensor's identity, so the module, and both names of a tied weight, see the view.
    network.tensor(i).set_data(
        flat.narrow(0, static_cast<int64_t>(info.offset), static_cast<int64_t>(info.size)).view(info.shape));
  }
}

void WriteInitialParameters(const Network& network, uint64_t seed, float* flat) {
  for (size_t i = 0; i < network.table.parameters().size(); ++i) {
    const ParameterInfo& info = network.table.parameters()[i];
    float* out = flat + info.offset;
    if (network.initial.empty()) {
      const at::Tensor stored = network.tensor(i).detach().contiguous();
      std::memmove(out, stored.data_ptr<float>(), info.size * sizeof(float));
      continue;
    }
    const auto [center, limit] = network.initial[i];
    PhiloxStream random(seed, /*stream=*/i);
    for (uint64_t k = 0; k < info.size; ++k) {
      const double offset = limit == 0 ? 0.0 : limit * (2.0 * random.NextUniform() - 1.0);
      out[k] = static_cast<float>(center + offset);
    }
  }
}

}  // namespace millrace
