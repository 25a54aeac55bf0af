#include "common/model/replica.h"

#include <torch/torch.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/aligned_buffer.h"
#include "common/model/network.h"
#include "common/model/runtime.h"
#include "common/model/torch_status.h"
#include "common/networks.h"
#include "common/status_macros.h"

namespace millrace {

struct Replica::State {
  v1::NetworkSpec spec;
  torch::Device device = torch::kCPU;
  bool own_memory = false;  // the module's tensors are in `flat`, a copy of `parameters` on the device
  // The flat vector outlives the module, whose parameters and statistics are views into `flat`.
  AlignedBuffer<float> parameters;
  at::Tensor flat;  // without a memory of its own, `parameters` as a tensor
  Network network;
  std::vector<float> stored_parameters;  // torchscript only: the file's, before binding

  torch::autograd::variable_list gradient_tensors;  // keeps `gradient` alive
  AlignedBuffer<float> downloaded_gradient;         // with a memory of its own
  std::vector<float> statistics_before;
  std::vector<float> statistics_change;  // times the samples
  std::vector<std::span<const float>> gradient;
  double label_smoothing = 0;
  std::vector<float> zeros;  // gradient of nothing; made when first needed

  size_t image_size() const { return size_t{spec.channels()} * spec.height() * spec.width(); }

  std::span<float> statistics() { return parameters.span().subspan(network.table.trainable_size()); }

  at::Tensor HostVector() { return torch::from_blob(parameters.data(), {static_cast<int64_t>(parameters.size())}); }

  void Bind() {
    flat = HostVector();
    if (own_memory) flat = flat.to(device, torch::kFloat32, /*non_blocking=*/false, /*copy=*/true);
    BindParameters(network, flat);
  }

  // What is written to `parameters` reaches the device with the next call, whoever wrote it.
  void Upload() {
    torch::NoGradGuard no_grad;
    if (own_memory) flat.copy_(HostVector());
  }

  absl::Status CheckBatch(std::span<const uint8_t> images, std::span<const uint8_t> labels) const {
    if (images.size() != labels.size() * image_size()) {
      return absl::InvalidArgumentError(absl::StrCat("batch has ", images.size(), " bytes of images for ",
                                                     labels.size(), " labels of ", image_size(), " pixels each"));
    }
    for (size_t i = 0; i < labels.size(); ++i) {
      if (labels[i] >= spec.classes()) {
        return absl::InvalidArgumentError(absl::StrCat("label ", labels[i], " of sample ", i,
                                                       " is not below the class count ", spec.classes()));
      }
    }
    return absl::OkStatus();
  }

  // On the device; LibTorch may throw, here and below.
  at::Tensor Pixels(std::span<const uint8_t> images, int64_t n) const {
    return torch::from_blob(const_cast<uint8_t*>(images.data()),
                            {n, int64_t{spec.channels()}, int64_t{spec.height()}, int64_t{spec.width()}}, torch::kUInt8)
        .to(device);
  }

  // What the output should be: the labels, or the images themselves with pixels in [0, 1].
  at::Tensor Targets(const at::Tensor& pixels, std::span<const uint8_t> labels) const {
    if (!Classifies(spec)) return pixels.to(torch::kFloat32).div(255);
    at::Tensor targets = torch::empty({static_cast<int64_t>(labels.size())}, torch::kInt64);
    std::copy(labels.begin(), labels.end(), targets.data_ptr<int64_t>());
    return targets.to(device);
  }

  at::Tensor Output(const at::Tensor& pixels, bool training) {
    if (network.module.is_training() != training) network.module.train(training);
    return network.module.get_method("output")({pixels}).toTensor();
  }

  at::Tensor SummedLoss(const at::Tensor& output, const at::Tensor& targets, double smoothing = 0) const {
    if (Classifies(spec)) {
      return torch::cross_entropy_loss(output, targets, /*weight=*/{}, at::Reduction::Sum, /*ignore_index=*/-100,
                                       smoothing);
    }
    return torch::mse_loss(output, targets, at::Reduction::Sum) / static_cast<double>(image_size());
  }

  BatchResult Summarise(const at::Tensor& output, const at::Tensor& targets, const at::Tensor& loss) const {
    BatchResult result{.samples = static_cast<uint32_t>(targets.size(0)), .loss_sum = loss.item<float>()};
    if (Classifies(spec)) result.correct = static_cast<uint32_t>(output.argmax(1).eq(targets).sum().item<int64_t>());
    return result;
  }

  void HoldGradient(torch::autograd::variable_list tensors) {
    gradient.clear();
    gradient_tensors = std::move(tensors);
    if (own_memory) {
      DownloadGradient();
    } else {
      for (size_t i = 0; i < network.parameters.size(); ++i) HoldPiece(gradient_tensors[i], i);
    }
    if (!statistics_change.empty()) gradient.emplace_back(statistics_change);
  }

  void HoldPiece(at::Tensor& tensor, size_t i) {
    const size_t size = network.table.parameters()[i].size;
    if (!tensor.defined()) {  // a parameter that the forward pass did not use
      if (zeros.size() < size) zeros.resize(network.table.trainable_size());
      gradient.push_back(std::span<const float>(zeros).first(size));
      return;
    }
    tensor = tensor.contiguous();
    gradient.emplace_back(tensor.data_ptr<float>(), size);
  }

  // As one piece: many small transfers from a device take longer than putting them together there.
  void DownloadGradient() {
    torch::NoGradGuard no_grad;
    at::Tensor whole = torch::zeros({static_cast<int64_t>(downloaded_gradient.size())}, flat.options());
    for (size_t i = 0; i < network.parameters.size(); ++i) {
      const ParameterInfo& info = network.table.parameters()[i];
      if (!gradient_tensors[i].defined()) continue;
      whole.narrow(0, static_cast<int64_t>(info.offset), static_cast<int64_t>(info.size))
          .copy_(gradient_tensors[i].reshape({-1}));
    }
    torch::from_blob(downloaded_gradient.data(), {whole.size(0)}).copy_(whole);
    gradient.emplace_back(downloaded_gradient.span());
  }

  void KeepStatistics() {
    const std::span<float> now = statistics();
    std::copy(now.begin(), now.end(), statistics_before.begin());
  }

  // With a memory of its own, the host's were never touched.
  void HoldStatistics(uint32_t samples) {
    torch::NoGradGuard no_grad;
    if (statistics_change.empty()) return;
    const at::Tensor now =
        flat.narrow(0, static_cast<int64_t>(network.table.trainable_size()), static_cast<int64_t>(statistics().size()))
            .to(torch::kCPU);
    const float* const after = now.data_ptr<float>();
    for (size_t i = 0; i < statistics_change.size(); ++i) {
      statistics_change[i] = static_cast<float>(samples) * (after[i] - statistics_before[i]);
    }
  }

  void RestoreStatistics() { std::copy(statistics_before.begin(), statistics_before.end(), statistics().begin()); }
};

namespace {

// An evaluation batch is computed in pieces of this many images, whose activations stay below what malloc hands out
// without a system call: 1000 images at once ran at less than half the speed.
constexpr size_t kEvaluationPiece = 256;

}  // namespace

absl::StatusOr<NetworkInfo> DescribeNetwork(const v1::NetworkSpec& network) {
  MILLRACE_ASSIGN_OR_RETURN(Network built, BuildNetwork(network));
  return NetworkInfo{std::move(built.table), built.slot_samples_min};
}

absl::StatusOr<ParameterTable> NetworkParameters(const v1::NetworkSpec& network) {
  MILLRACE_ASSIGN_OR_RETURN(NetworkInfo info, DescribeNetwork(network));
  return std::move(info.table);
}

absl::StatusOr<std::vector<float>> InitialParameters(const v1::NetworkSpec& network, uint64_t seed) {
  MILLRACE_ASSIGN_OR_RETURN(const Network built, BuildNetwork(network));
  std::vector<float> flat(built.table.size());
  WriteInitialParameters(built, seed, flat.data());
  return flat;
}

absl::StatusOr<std::unique_ptr<Replica>> Replica::Create(const v1::NetworkSpec& network) {
  return Create(network, Options());
}

absl::StatusOr<std::unique_ptr<Replica>> Replica::Create(const v1::NetworkSpec& network, const Options& options) {
  MILLRACE_ASSIGN_OR_RETURN(Network built, BuildNetwork(network));
  return CatchTorch("creating the replica", [&]() -> absl::StatusOr<std::unique_ptr<Replica>> {
    const size_t count = built.table.size();
    auto state = std::make_unique<State>();
    state->spec = network;
    state->device = torch::Device(options.device);
    state->own_memory = options.own_memory || !state->device.is_cpu();
    state->parameters = AlignedBuffer<float>(count);
    state->network = std::move(built);
    if (state->network.initial.empty()) {
      state->stored_parameters.resize(count);
      WriteInitialParameters(state->network, 0, state->stored_parameters.data());
    }
    // Constants too go to the device; what is bound afterwards replaces the rest.
    if (!state->device.is_cpu()) state->network.module.to(state->device);
    state->Bind();
    const ParameterTable& table = state->network.table;
    if (state->own_memory) state->downloaded_gradient = AlignedBuffer<float>(table.trainable_size());
    state->statistics_before.resize(table.statistics_size());
    state->statistics_change.resize(table.statistics_size());
    return std::unique_ptr<Replica>(new Replica(std::move(state)));
  });
}

Replica::Replica(std::unique_ptr<State> state) : state_(std::move(state)) {}
Replica::~Replica() = default;

const v1::NetworkSpec& Replica::network() const { return state_->spec; }
const ParameterTable& Replica::table() const { return state_->network.table; }
std::span<float> Replica::parameters() { return state_->parameters.span(); }
std::span<const float> Replica::parameters() const { return state_->parameters.span(); }
std::span<const std::span<const float>> Replica::gradient() const { return state_->gradient; }

void Replica::set_label_smoothing(double share) { state_->label_smoothing = share; }

void Replica::InitializeParameters(uint64_t seed) {
  std::span<float> flat = state_->parameters.span();
  if (!state_->stored_parameters.empty()) {
    std::copy(state_->stored_parameters.begin(), state_->stored_parameters.end(), flat.begin());
    return;
  }
  WriteInitialParameters(state_->network, seed, flat.data());
}

absl::StatusOr<BatchResult> Replica::ComputeGradient(std::span<const uint8_t> images, std::span<const uint8_t> labels,
                                                     uint64_t noise_seed) {
  MILLRACE_RETURN_IF_ERROR(state_->CheckBatch(images, labels));
  ConfigureTorchThread();
  return CatchTorch("computing the gradient", [&]() -> absl::StatusOr<BatchResult> {
    if (labels.empty()) {
      std::fill(state_->statistics_change.begin(), state_->statistics_change.end(), 0.0f);
      state_->HoldGradient(torch::autograd::variable_list(state_->network.parameters.size()));
      return BatchResult{};
    }
    state_->Upload();
    state_->KeepStatistics();
    const absl::Cleanup restore = [this] { state_->RestoreStatistics(); };
    if (state_->network.noise) torch::manual_seed(noise_seed);
    const at::Tensor pixels = state_->Pixels(images, static_cast<int64_t>(labels.size()));
    const at::Tensor targets = state_->Targets(pixels, labels);
    const at::Tensor output = state_->Output(pixels, /*training=*/true);
    const at::Tensor loss = state_->SummedLoss(output, targets, state_->label_smoothing);
    state_->HoldGradient(torch::autograd::grad({loss}, state_->network.parameters, /*grad_outputs=*/{},
                                               /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true));
    state_->HoldStatistics(static_cast<uint32_t>(labels.size()));
    torch::NoGradGuard no_grad;
    return state_->Summarise(output, targets, loss);
  });
}

absl::StatusOr<BatchResult> Replica::Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) {
  MILLRACE_RETURN_IF_ERROR(state_->CheckBatch(images, labels));
  ConfigureTorchThread();
  return CatchTorch("evaluating", [&]() -> absl::StatusOr<BatchResult> {
    state_->Upload();
    torch::InferenceMode inference;
    BatchResult total;
    for (size_t begin = 0; begin < labels.size(); begin += kEvaluationPiece) {
      const std::span<const uint8_t> part = labels.subspan(begin, std::min(kEvaluationPiece, labels.size() - begin));
      const at::Tensor pixels =
          state_->Pixels(images.subspan(begin * state_->image_size()), static_cast<int64_t>(part.size()));
      const at::Tensor targets = state_->Targets(pixels, part);
      const at::Tensor output = state_->Output(pixels, /*training=*/false);
      const BatchResult result = state_->Summarise(output, targets, state_->SummedLoss(output, targets));
      total.samples += result.samples;
      total.loss_sum += result.loss_sum;
      total.correct += result.correct;
    }
    return total;
  });
}

}  // namespace millrace
