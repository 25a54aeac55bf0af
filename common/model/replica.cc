#include "common/model/replica.h"

#include <torch/torch.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/aligned_buffer.h"
#include "common/model/network.h"
#include "common/model/runtime.h"
#include "common/model/torch_status.h"
#include "common/status_macros.h"

namespace millrace {

struct Replica::State {
  v1::NetworkSpec spec;
  // The flat vector outlives the module, whose parameters are views into it.
  AlignedBuffer<float> parameters;
  Network network;
  std::vector<float> stored_parameters;  // torchscript only: the file's, before binding

  torch::autograd::variable_list gradient_tensors;      // keeps `gradient` alive
  std::vector<std::span<const float>> gradient;
  double label_smoothing = 0;
  std::vector<float> zeros;                             // gradient of nothing; made when first needed

  size_t image_size() const { return size_t{spec.channels()} * spec.height() * spec.width(); }
  bool random() const { return network.initial_limits.empty(); }  // only a user's module may contain dropout

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

  // Logits [n, classes] of uint8 pixels; LibTorch may throw.
  at::Tensor Logits(std::span<const uint8_t> images, int64_t n, bool training) {
    if (network.module.is_training() != training) network.module.train(training);
    const at::Tensor pixels =
        torch::from_blob(const_cast<uint8_t*>(images.data()),
                         {n, int64_t{spec.channels()}, int64_t{spec.height()}, int64_t{spec.width()}}, torch::kUInt8);
    return network.module.get_method("logits")({pixels}).toTensor();
  }

  static at::Tensor Targets(std::span<const uint8_t> labels) {
    at::Tensor targets = torch::empty({static_cast<int64_t>(labels.size())}, torch::kInt64);
    std::copy(labels.begin(), labels.end(), targets.data_ptr<int64_t>());
    return targets;
  }

  static BatchResult Summarise(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& loss) {
    return {.samples = static_cast<uint32_t>(targets.size(0)),
            .loss_sum = loss.item<float>(),
            .correct = static_cast<uint32_t>(logits.argmax(1).eq(targets).sum().item<int64_t>())};
  }

  void ZeroGradient() {
    size_t largest = 0;
    for (const ParameterInfo& info : network.table.parameters()) largest = std::max<size_t>(largest, info.size);
    zeros.resize(largest);
  }

  void HoldGradient(torch::autograd::variable_list tensors) {
    gradient_tensors = std::move(tensors);
    for (size_t i = 0; i < gradient.size(); ++i) {
      at::Tensor& tensor = gradient_tensors[i];
      const size_t size = network.table.parameters()[i].size;
      if (!tensor.defined()) {  // a parameter that the forward pass did not use
        ZeroGradient();
        gradient[i] = std::span<const float>(zeros.data(), size);
        continue;
      }
      tensor = tensor.contiguous();
      gradient[i] = std::span<const float>(tensor.data_ptr<float>(), size);
    }
  }
};

namespace {

// An evaluation batch is computed in pieces of this many images, whose activations stay below what malloc hands out
// without a system call: 1000 images at once ran at less than half the speed.
constexpr size_t kEvaluationPiece = 256;

at::Tensor SummedLoss(const at::Tensor& logits, const at::Tensor& targets, double label_smoothing = 0) {
  return torch::cross_entropy_loss(logits, targets, /*weight=*/{}, at::Reduction::Sum, /*ignore_index=*/-100,
                                   label_smoothing);
}

}  // namespace

absl::StatusOr<ParameterTable> NetworkParameters(const v1::NetworkSpec& network) {
  MILLRACE_ASSIGN_OR_RETURN(Network built, BuildNetwork(network));
  return std::move(built.table);
}

absl::StatusOr<std::vector<float>> InitialParameters(const v1::NetworkSpec& network, uint64_t seed) {
  MILLRACE_ASSIGN_OR_RETURN(const Network built, BuildNetwork(network));
  std::vector<float> flat(built.table.size());
  WriteInitialParameters(built, seed, flat.data());
  return flat;
}

absl::StatusOr<std::unique_ptr<Replica>> Replica::Create(const v1::NetworkSpec& network) {
  MILLRACE_ASSIGN_OR_RETURN(Network built, BuildNetwork(network));
  const size_t count = built.table.size();
  auto state = std::make_unique<State>();
  state->spec = network;
  state->parameters = AlignedBuffer<float>(count);
  state->network = std::move(built);
  if (state->random()) {
    state->stored_parameters.resize(count);
    WriteInitialParameters(state->network, 0, state->stored_parameters.data());
  }
  BindParameters(state->network, state->parameters.span().data());
  state->gradient.resize(state->network.parameters.size());
  return std::unique_ptr<Replica>(new Replica(std::move(state)));
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
      state_->HoldGradient(torch::autograd::variable_list(state_->gradient.size()));
      return BatchResult{};
    }
    if (state_->random()) torch::manual_seed(noise_seed);
    const at::Tensor logits = state_->Logits(images, labels.size(), /*training=*/true);
    const at::Tensor targets = State::Targets(labels);
    const at::Tensor loss = SummedLoss(logits, targets, state_->label_smoothing);
    state_->HoldGradient(torch::autograd::grad({loss}, state_->network.parameters, /*grad_outputs=*/{},
                                               /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true));
    torch::NoGradGuard no_grad;
    return State::Summarise(logits, targets, loss);
  });
}

absl::StatusOr<BatchResult> Replica::Evaluate(std::span<const uint8_t> images, std::span<const uint8_t> labels) {
  MILLRACE_RETURN_IF_ERROR(state_->CheckBatch(images, labels));
  ConfigureTorchThread();
  return CatchTorch("evaluating", [&]() -> absl::StatusOr<BatchResult> {
    torch::InferenceMode inference;
    BatchResult total;
    for (size_t begin = 0; begin < labels.size(); begin += kEvaluationPiece) {
      const std::span<const uint8_t> part = labels.subspan(begin, std::min(kEvaluationPiece, labels.size() - begin));
      const at::Tensor logits = state_->Logits(images.subspan(begin * state_->image_size()), part.size(),
                                               /*training=*/false);
      const at::Tensor targets = State::Targets(part);
      const BatchResult result = State::Summarise(logits, targets, SummedLoss(logits, targets));
      total.samples += result.samples;
      total.loss_sum += result.loss_sum;
      total.correct += result.correct;
    }
    return total;
  });
}

}  // namespace millrace
