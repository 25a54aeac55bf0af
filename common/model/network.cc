#include "common/model/network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <sstream>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/hashing.h"
#include "common/limits.h"
#include "common/model/torch_status.h"
#include "common/random.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr uint32_t kMaxChannels = 16;
constexpr uint32_t kMaxSide = 1024;
constexpr size_t kMaxScriptBytes = size_t{1} << 30;

// Parameters by name and shape; `fan_in` 0 marks a bias.
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  int64_t fan_in = 0;
  int64_t fan_out = 0;
};

struct BuiltIn {
  std::vector<ParameterSpec> parameters;
  std::string source;
};

// Keras: Conv2D(32, 3x3, relu) -> MaxPool 2x2 -> Flatten -> Dense(128, relu) -> Dense(classes). Two rewrites that leave
// the function as it is: pooling before relu (a quarter of the work, and max and relu commute), and flattening in
// height-width-channel order, which is Keras' own order and a free view of channels-last activations.
BuiltIn Cnn(const v1::NetworkSpec& spec) {
  constexpr int64_t kFilters = 32, kHidden = 128;
  const int64_t channels = spec.channels(), classes = spec.classes();
  const int64_t flat = kFilters * ((spec.height() - 2) / 2) * ((spec.width() - 2) / 2);
  return {{
              {"conv_weight", {kFilters, channels, 3, 3}, 9 * channels, 9 * kFilters},
              {"conv_bias", {kFilters}},
              {"hidden_weight", {kHidden, flat}, flat, kHidden},
              {"hidden_bias", {kHidden}},
              {"output_weight", {classes, kHidden}, kHidden, classes},
              {"output_bias", {classes}},
          },
          R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv_weight, self.conv_bias)
    x = torch.relu(torch.max_pool2d(x, [2, 2]))
    x = x.permute(0, 2, 3, 1).reshape(x.size(0), -1)
    x = torch.relu(torch.linear(x, self.hidden_weight, self.hidden_bias))
    return torch.linear(x, self.output_weight, self.output_bias)
)"};
}

// Two hidden layers of 1024: a model of more than gRPC's default message limit for the smallest images already.
BuiltIn Mlp(const v1::NetworkSpec& spec) {
  constexpr int64_t kHidden = 1024;
  const int64_t classes = spec.classes();
  const int64_t flat = int64_t{spec.channels()} * spec.height() * spec.width();
  return {{
              {"hidden1_weight", {kHidden, flat}, flat, kHidden},
              {"hidden1_bias", {kHidden}},
              {"hidden2_weight", {kHidden, kHidden}, kHidden, kHidden},
              {"hidden2_bias", {kHidden}},
              {"output_weight", {classes, kHidden}, kHidden, classes},
              {"output_bias", {classes}},
          },
          R"(
def forward(self, x):
    x = x.flatten(1)
    x = torch.relu(torch.linear(x, self.hidden1_weight, self.hidden1_bias))
    x = torch.relu(torch.linear(x, self.hidden2_weight, self.hidden2_bias))
    return torch.linear(x, self.output_weight, self.output_bias)
)"};
}

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

absl::StatusOr<Network> BuildBuiltIn(const BuiltIn& built_in, torch::jit::Module& body) {
  Network network;
  for (const ParameterSpec& parameter : built_in.parameters) {
    at::Tensor value = torch::zeros(parameter.shape, torch::requires_grad());
    body.register_parameter(parameter.name, value, /*is_buffer=*/false);
    MILLRACE_RETURN_IF_ERROR(network.table.Add(parameter.name, parameter.shape));
    network.parameters.push_back(std::move(value));
    // Glorot uniform, as Keras' default.
    const int64_t fans = parameter.fan_in + parameter.fan_out;
    network.initial_limits.push_back(fans == 0 ? 0.0 : std::sqrt(6.0 / static_cast<double>(fans)));
  }
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
  for (const at::Tensor& buffer : body.buffers()) network.buffers.push_back(buffer);
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
  const char* const predict = spec.architecture() == "torchscript" ? "forward" : "predict";
  return absl::StrCat("def normalised(self, x):\n    x = ", layout, "\n    return ", normalise, "\n",
                      "def logits(self, x):\n    return self.network.forward(self.normalised(x))\n",
                      "def forward(self, INPUT__0):\n    return torch.softmax(self.network.", predict,
                      "(self.normalised(INPUT__0)), 1)\n");
}

// The forward pass of a user's module is tried on two images: it must give float logits [2, classes] and leave its
// buffers as they are.
absl::Status ProbeScript(const v1::NetworkSpec& spec, Network& network) {
  std::vector<at::Tensor> before;
  for (const at::Tensor& buffer : network.buffers) before.push_back(buffer.clone());
  at::Tensor logits;
  try {
    torch::NoGradGuard no_grad;
    network.module.train();
    const auto noise = torch::arange(int64_t{2} * spec.channels() * spec.height() * spec.width(), torch::kInt64)
                           .mul(37)
                           .remainder(256)
                           .to(torch::kUInt8)
                           .reshape({2, spec.channels(), spec.height(), spec.width()});
    logits = network.module.get_method("logits")({noise}).toTensor();
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrFormat("%s does not take float images [n, %u, %u, %u]: %s",
                                                      spec.torchscript_path(), spec.channels(), spec.height(),
                                                      spec.width(), FirstLine(error.what())));
  }
  if (logits.scalar_type() != torch::kFloat32 || logits.dim() != 2 || logits.size(0) != 2 ||
      logits.size(1) != spec.classes()) {
    std::ostringstream shape;
    shape << logits.sizes();
    return absl::InvalidArgumentError(absl::StrFormat("%s gives %s %s for two images instead of float logits [2, %u]",
                                                      spec.torchscript_path(), toString(logits.scalar_type()),
                                                      shape.str(), spec.classes()));
  }
  for (size_t i = 0; i < before.size(); ++i) {
    if (!torch::equal(before[i], network.buffers[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(spec.torchscript_path(), " changes a buffer in its forward pass (batch norm's running "
                                                "statistics?): each worker would have its own; use a layer without "
                                                "running statistics, such as GroupNorm"));
    }
  }
  return absl::OkStatus();
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

absl::StatusOr<Network> BuildNetwork(const v1::NetworkSpec& spec) {
  MILLRACE_RETURN_IF_ERROR(CheckSpec(spec));
  return CatchTorch("building the network", [&]() -> absl::StatusOr<Network> {
    absl::StatusOr<Network> built;
    torch::jit::Module body("__torch__.millrace.Network");
    if (spec.architecture() == "cnn") {
      if (spec.height() < 4 || spec.width() < 4) {
        return absl::InvalidArgumentError(
            absl::StrFormat("network cnn needs images of at least 4x4 pixels, got %ux%u", spec.height(), spec.width()));
      }
      built = BuildBuiltIn(Cnn(spec), body);
    } else if (spec.architecture() == "mlp") {
      built = BuildBuiltIn(Mlp(spec), body);
    } else if (spec.architecture() == "torchscript") {
      MILLRACE_ASSIGN_OR_RETURN(body, LoadScript(spec));
      built = CollectScript(spec.torchscript_path(), body);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown network \"", spec.architecture(), "\"; there are cnn, mlp and torchscript"));
    }
    if (!built.ok()) return built;
    Network& network = *built;
    network.module = torch::jit::Module("__torch__.millrace.Classifier");
    network.module.register_attribute("training", c10::BoolType::get(), true);
    network.module.register_module("network", body);
    network.module.define(WrapperSource(spec));
    if (spec.architecture() == "torchscript") {
      MILLRACE_RETURN_IF_ERROR(ProbeScript(spec, network));
    }
    return built;
  });
}

void BindParameters(Network& network, float* flat) {
  for (size_t i = 0; i < network.parameters.size(); ++i) {
    const ParameterInfo& info = network.table.parameters()[i];
    // set_data keeps the tensor's identity, so the module, and both names of a tied weight, see the view.
    network.parameters[i].set_data(torch::from_blob(flat + info.offset, info.shape));
  }
}

void WriteInitialParameters(const Network& network, uint64_t seed, float* flat) {
  for (size_t i = 0; i < network.parameters.size(); ++i) {
    const ParameterInfo& info = network.table.parameters()[i];
    float* out = flat + info.offset;
    if (network.initial_limits.empty()) {
      const at::Tensor stored = network.parameters[i].detach().contiguous();
      std::memmove(out, stored.data_ptr<float>(), info.size * sizeof(float));
      continue;
    }
    const double limit = network.initial_limits[i];
    PhiloxStream random(seed, /*stream=*/i);
    for (uint64_t k = 0; k < info.size; ++k) {
      out[k] = limit == 0 ? 0.0f : static_cast<float>(limit * (2.0 * random.NextUniform() - 1.0));
    }
  }
}

}  // namespace millrace
