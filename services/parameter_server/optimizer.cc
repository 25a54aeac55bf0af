#include "services/parameter_server/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/aligned_buffer.h"
#include "common/status_macros.h"
#include "services/parameter_server/optimizer_spec.h"

namespace millrace {
namespace {

// A multiple of kShardAlignment, and not above LibTorch's grain size (at::internal::GRAIN_SIZE), below which
// elementwise kernels run on the calling thread alone.
constexpr uint64_t kBlockElements = 32768;
static_assert(kBlockElements <= at::internal::GRAIN_SIZE);

std::unique_ptr<torch::optim::Optimizer> MakeOptimizer(const v1::OptimizerSpec& spec, std::vector<at::Tensor> blocks) {
  const auto betas = std::make_tuple(spec.beta1(), spec.beta2());
  switch (spec.kind()) {
    case v1::OPTIMIZER_KIND_ADAM:
      return std::make_unique<torch::optim::Adam>(std::move(blocks), torch::optim::AdamOptions(spec.learning_rate())
                                                                         .betas(betas)
                                                                         .eps(spec.epsilon())
                                                                         .weight_decay(spec.weight_decay()));
    case v1::OPTIMIZER_KIND_ADAMW:
      return std::make_unique<torch::optim::AdamW>(std::move(blocks), torch::optim::AdamWOptions(spec.learning_rate())
                                                                          .betas(betas)
                                                                          .eps(spec.epsilon())
                                                                          .weight_decay(spec.weight_decay()));
    default:
      return std::make_unique<torch::optim::SGD>(
          std::move(blocks),
          torch::optim::SGDOptions(spec.learning_rate()).momentum(spec.momentum()).weight_decay(spec.weight_decay()));
  }
}

// LibTorch keys a parameter's state by its address: as a string in 1.x, as a pointer in 2.x.
template <typename Map>
typename Map::key_type StateKey(const Map&, const at::Tensor& parameter) {
  if constexpr (std::is_same_v<typename Map::key_type, std::string>) {
    return c10::guts::to_string(parameter.unsafeGetTensorImpl());
  } else {
    return parameter.unsafeGetTensorImpl();
  }
}

}  // namespace

std::vector<std::string> OptimizerTensorNames(const v1::OptimizerSpec& spec, uint64_t step) {
  if (step == 0) return {};
  if (spec.kind() == v1::OPTIMIZER_KIND_SGD) {
    if (spec.momentum() == 0) return {};
    return {"momentum_buffer"};
  }
  return {"exp_avg", "exp_avg_sq"};
}

struct ShardOptimizer::Impl {
  Impl(const v1::OptimizerSpec& optimizer_spec, uint64_t element_count)
      : spec(optimizer_spec), elements(element_count), tensors(OptimizerTensorNames(spec, 1).size()) {
    for (auto& tensor : tensors) tensor = AlignedBuffer<float>(elements);
    for (uint64_t begin = 0; begin < elements; begin += kBlockElements) blocks.push_back(torch::empty({0}));
    optimizer = MakeOptimizer(spec, blocks);
  }

  // The part of a flat array that belongs to block i.
  at::Tensor View(float* flat, size_t i) const {
    const uint64_t begin = i * kBlockElements;
    return torch::from_blob(flat + begin, {static_cast<int64_t>(std::min(kBlockElements, elements - begin))});
  }

  void Bind(float* new_weights, float* new_gradient) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (new_weights != weights) blocks[i].set_data(View(new_weights, i));
      if (new_gradient != gradient) blocks[i].mutable_grad() = View(new_gradient, i);
    }
    weights = new_weights;
    gradient = new_gradient;
  }

  // Lets LibTorch's state of every block point into `tensors`, which hold the values to go on with.
  void BindState() {
    auto& state = optimizer->state();
    state.clear();
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (auto block_state = BlockState(i)) state[StateKey(state, blocks[i])] = std::move(block_state);
    }
  }

  std::unique_ptr<torch::optim::OptimizerParamState> BlockState(size_t i) {
    switch (spec.kind()) {
      case v1::OPTIMIZER_KIND_ADAM:
        return AdaptiveState<torch::optim::AdamParamState>(i);
      case v1::OPTIMIZER_KIND_ADAMW:
        return AdaptiveState<torch::optim::AdamWParamState>(i);
      default: {
        if (OptimizerTensorNames(spec, step).empty()) return nullptr;
        auto state = std::make_unique<torch::optim::SGDParamState>();
        state->momentum_buffer(View(tensors[0].data(), i));
        return state;
      }
    }
  }

  template <typename State>
  std::unique_ptr<torch::optim::OptimizerParamState> AdaptiveState(size_t i) {
    auto state = std::make_unique<State>();
    state->step(static_cast<int64_t>(step));
    state->exp_avg(View(tensors[0].data(), i));
    state->exp_avg_sq(View(tensors[1].data(), i));
    return state;
  }

  // SGD makes its momentum buffers in the first update (a copy of the gradient); from then on they live in `tensors`.
  void AdoptMomentum() {
    auto& state = optimizer->state();
    for (size_t i = 0; i < blocks.size(); ++i) {
      auto& made = static_cast<torch::optim::SGDParamState&>(*state.at(StateKey(state, blocks[i])));
      View(tensors[0].data(), i).copy_(made.momentum_buffer());
    }
    BindState();
  }

  const v1::OptimizerSpec spec;
  const uint64_t elements;
  std::vector<AlignedBuffer<float>> tensors;  // flat, in the order of OptimizerTensorNames
  std::vector<at::Tensor> blocks;             // views of the weights, whose gradients are views of the gradient
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  float* weights = nullptr;  // what the blocks point at now
  float* gradient = nullptr;
  uint64_t step = 0;
};

ShardOptimizer::ShardOptimizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShardOptimizer::~ShardOptimizer() = default;

absl::StatusOr<std::unique_ptr<ShardOptimizer>> ShardOptimizer::Create(const v1::OptimizerSpec& spec,
                                                                       uint64_t elements) {
  MILLRACE_RETURN_IF_ERROR(CheckOptimizerSpec(spec));
  try {
    auto impl = std::make_unique<Impl>(spec, elements);
    impl->BindState();
    return std::unique_ptr<ShardOptimizer>(new ShardOptimizer(std::move(impl)));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("cannot build the optimizer: ", error.what()));
  }
}

absl::Status ShardOptimizer::Step(std::span<float> weights, std::span<const float> gradient) {
  if (weights.size() != impl_->elements || gradient.size() != impl_->elements) {
    return absl::InvalidArgumentError(absl::StrCat("an update of ", weights.size(), " weights by ", gradient.size(),
                                                   " gradient values, for a shard of ", impl_->elements));
  }
  try {
    torch::NoGradGuard no_grad;
    impl_->Bind(weights.data(), const_cast<float*>(gradient.data()));  // optimizers do not write to gradients
    impl_->optimizer->step();
    ++impl_->step;
    if (impl_->step == 1 && impl_->spec.kind() == v1::OPTIMIZER_KIND_SGD && !impl_->tensors.empty()) {
      impl_->AdoptMomentum();
    }
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("the optimizer failed: ", error.what()));
  }
}

uint64_t ShardOptimizer::step() const { return impl_->step; }

OptimizerState ShardOptimizer::Save() const {
  OptimizerState state;
  state.step = impl_->step;
  const std::vector<std::string> names = OptimizerTensorNames(impl_->spec, state.step);
  for (size_t i = 0; i < names.size(); ++i) {
    const std::span<const float> values = impl_->tensors[i].span();
    state.tensors.push_back({names[i], std::vector<float>(values.begin(), values.end())});
  }
  return state;
}

absl::Status ShardOptimizer::Load(const OptimizerState& state) {
  const std::vector<std::string> names = OptimizerTensorNames(impl_->spec, state.step);
  const bool fits = std::equal(names.begin(), names.end(), state.tensors.begin(), state.tensors.end(),
                               [&](const std::string& name, const OptimizerState::Tensor& tensor) {
                                 return name == tensor.name && tensor.values.size() == impl_->elements;
                               });
  if (!fits) {
    return absl::InvalidArgumentError(absl::StrCat("this is no state of ", v1::OptimizerKind_Name(impl_->spec.kind()),
                                                   " after ", state.step, " steps over ", impl_->elements,
                                                   " elements"));
  }
  for (size_t i = 0; i < impl_->tensors.size(); ++i) {
    const std::span<float> out = impl_->tensors[i].span();
    if (i < names.size()) {
      std::copy(state.tensors[i].values.begin(), state.tensors[i].values.end(), out.begin());
    } else {
      std::fill(out.begin(), out.end(), 0.0f);
    }
  }
  impl_->step = state.step;
  try {
    impl_->BindState();
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("cannot restore the optimizer: ", error.what()));
  }
}

}  // namespace millrace
