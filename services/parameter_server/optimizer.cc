#include "services/parameter_server/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <sstream>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/aligned_buffer.h"
#include "common/status_macros.h"
#include "common/tensor/flat_layout.h"
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
    return (std::ostringstream() << parameter.unsafeGetTensorImpl()).str();
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
  // LibTorch's optimizer over the blocks of one chunk.
  struct Chunk {
    std::vector<uint64_t> begins;    // of the blocks, in elements
    std::vector<at::Tensor> blocks;  // views of the weights, whose gradients are views of the gradient
    std::unique_ptr<torch::optim::Optimizer> optimizer;
    uint64_t step = 0;         // updates made
    bool in_saved = false;     // its state is in `saved`, which must not be changed
    float* weights = nullptr;  // what the blocks point at now
    float* gradient = nullptr;
  };

  // The memory of one state. `held` as in weights_buffer.h: cleared (release) when the last holder of what was saved
  // lets go, and read (acquire) before it is written again.
  struct Memory {
    std::vector<AlignedBuffer<float>> tensors;  // flat, in the order of OptimizerTensorNames
    std::atomic<bool> held{false};
  };

  Impl(const v1::OptimizerSpec& optimizer_spec, uint64_t element_count, uint64_t chunk_elements,
       uint64_t trainable_count)
      : spec(optimizer_spec),
        elements(element_count),
        block_elements(std::min(kBlockElements, chunk_elements)),
        trainable(std::min(trainable_count, elements)),
        live(TakeMemory()) {
    for (uint64_t begin = 0; begin < elements; begin += block_elements) {
      if (begin % chunk_elements == 0) chunks.emplace_back();
      if (begin >= trainable) continue;
      chunks.back().begins.push_back(begin);
      chunks.back().blocks.push_back(torch::empty({0}));
    }
    for (Chunk& chunk : chunks) {
      chunk.optimizer = MakeOptimizer(spec, chunk.blocks);
      BindState(chunk);
    }
  }

  // With any values.
  std::shared_ptr<Memory> TakeMemory() {
    for (const auto& memory : memories) {
      if (memory != live && memory != saved && !memory->held.load(std::memory_order_acquire)) return memory;
    }
    memories.push_back(std::make_shared<Memory>());
    for (size_t i = 0; i < OptimizerTensorNames(spec, 1).size(); ++i) {
      memories.back()->tensors.emplace_back(elements);
    }
    return memories.back();
  }

  // Takes the chunk's state out of what was saved.
  void MoveToLive(Chunk& chunk) {
    if (!std::exchange(chunk.in_saved, false)) return;
    for (const uint64_t begin : chunk.begins) {
      const uint64_t count = std::min(block_elements, trainable - begin);
      for (size_t i = 0; i < live->tensors.size(); ++i) {
        std::copy_n(saved->tensors[i].data() + begin, count, live->tensors[i].data() + begin);
      }
    }
    BindState(chunk);
    const auto left = [](const Chunk& other) { return other.in_saved; };
    if (std::none_of(chunks.begin(), chunks.end(), left)) saved.reset();
  }

  // The part of a flat array that is the block at `begin`.
  at::Tensor View(float* flat, uint64_t begin) const {
    return torch::from_blob(flat + begin, {static_cast<int64_t>(std::min(block_elements, trainable - begin))});
  }

  void Bind(Chunk& chunk, float* weights, float* gradient) const {
    for (size_t i = 0; i < chunk.blocks.size(); ++i) {
      if (weights != chunk.weights) chunk.blocks[i].set_data(View(weights, chunk.begins[i]));
      if (gradient != chunk.gradient) chunk.blocks[i].mutable_grad() = View(gradient, chunk.begins[i]);
    }
    chunk.weights = weights;
    chunk.gradient = gradient;
  }

  // Lets LibTorch's state of every block point into `live`, which holds the values to go on with.
  void BindState(Chunk& chunk) {
    auto& state = chunk.optimizer->state();
    state.clear();
    for (size_t i = 0; i < chunk.blocks.size(); ++i) {
      if (auto block_state = BlockState(chunk.step, chunk.begins[i])) {
        state[StateKey(state, chunk.blocks[i])] = std::move(block_state);
      }
    }
  }

  std::unique_ptr<torch::optim::OptimizerParamState> BlockState(uint64_t step, uint64_t begin) {
    switch (spec.kind()) {
      case v1::OPTIMIZER_KIND_ADAM:
        return AdaptiveState<torch::optim::AdamParamState>(step, begin);
      case v1::OPTIMIZER_KIND_ADAMW:
        return AdaptiveState<torch::optim::AdamWParamState>(step, begin);
      default: {
        if (OptimizerTensorNames(spec, step).empty()) return nullptr;
        auto state = std::make_unique<torch::optim::SGDParamState>();
        state->momentum_buffer(View(live->tensors[0].data(), begin));
        return state;
      }
    }
  }

  template <typename State>
  std::unique_ptr<torch::optim::OptimizerParamState> AdaptiveState(uint64_t step, uint64_t begin) {
    auto state = std::make_unique<State>();
    state->step(static_cast<int64_t>(step));
    state->exp_avg(View(live->tensors[0].data(), begin));
    state->exp_avg_sq(View(live->tensors[1].data(), begin));
    return state;
  }

  // SGD makes its momentum buffers in the first update (a copy of the gradient); from then on they are in `live`.
  void AdoptMomentum(Chunk& chunk) {
    auto& state = chunk.optimizer->state();
    for (size_t i = 0; i < chunk.blocks.size(); ++i) {
      auto& made = static_cast<torch::optim::SGDParamState&>(*state.at(StateKey(state, chunk.blocks[i])));
      View(live->tensors[0].data(), chunk.begins[i]).copy_(made.momentum_buffer());
    }
    BindState(chunk);
  }

  const v1::OptimizerSpec spec;
  const uint64_t elements;
  const uint64_t block_elements;
  const uint64_t trainable;
  std::vector<std::shared_ptr<Memory>> memories;
  std::shared_ptr<Memory> live;   // of chunks that are not in_saved; updates are made here
  std::shared_ptr<Memory> saved;  // of the others; null if there are none
  std::vector<Chunk> chunks;
};

ShardOptimizer::ShardOptimizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShardOptimizer::~ShardOptimizer() = default;

absl::StatusOr<std::unique_ptr<ShardOptimizer>> ShardOptimizer::Create(const v1::OptimizerSpec& spec, uint64_t elements,
                                                                       uint64_t chunk_elements, uint64_t trainable) {
  MILLRACE_RETURN_IF_ERROR(CheckOptimizerSpec(spec));
  const uint64_t grid = chunk_elements < kBlockElements ? kShardAlignment : kBlockElements;
  if (chunk_elements == 0 || chunk_elements % grid != 0) {
    return absl::InvalidArgumentError(absl::StrCat("chunks of ", chunk_elements, " elements are no multiple of ", grid));
  }
  try {
    return std::unique_ptr<ShardOptimizer>(
        new ShardOptimizer(std::make_unique<Impl>(spec, elements, chunk_elements, trainable)));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("cannot build the optimizer: ", error.what()));
  }
}

uint64_t ShardOptimizer::chunks() const { return impl_->chunks.size(); }

absl::Status ShardOptimizer::Step(uint64_t chunk, std::span<float> weights, std::span<const float> gradient,
                                  double learning_rate) {
  if (weights.size() != impl_->elements || gradient.size() != impl_->elements || chunk >= chunks()) {
    return absl::InvalidArgumentError(absl::StrCat("an update of chunk ", chunk, " of ", weights.size(), " weights by ",
                                                   gradient.size(), " gradient values, for a shard of ",
                                                   impl_->elements));
  }
  try {
    torch::NoGradGuard no_grad;
    Impl::Chunk& part = impl_->chunks[chunk];
    impl_->MoveToLive(part);
    impl_->Bind(part, weights.data(), const_cast<float*>(gradient.data()));  // optimizers do not write to gradients
    for (torch::optim::OptimizerParamGroup& group : part.optimizer->param_groups()) {
      group.options().set_lr(learning_rate);
    }
    part.optimizer->step();
    ++part.step;
    const bool made_momentum = part.step == 1 && impl_->spec.kind() == v1::OPTIMIZER_KIND_SGD;
    if (made_momentum && !impl_->live->tensors.empty()) impl_->AdoptMomentum(part);
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("the optimizer failed: ", error.what()));
  }
}

OptimizerState ShardOptimizer::Save() {
  OptimizerState state;
  state.step = impl_->chunks.empty() ? 0 : impl_->chunks.front().step;
  const std::vector<std::string> names = OptimizerTensorNames(impl_->spec, state.step);
  if (names.empty()) return state;
  for (Impl::Chunk& chunk : impl_->chunks) impl_->MoveToLive(chunk);  // saved twice without an update
  impl_->saved = std::exchange(impl_->live, nullptr);
  impl_->live = impl_->TakeMemory();
  for (Impl::Chunk& chunk : impl_->chunks) chunk.in_saved = true;
  impl_->saved->held.store(true, std::memory_order_relaxed);
  // The deleter owns the memory, so that a state may outlive the optimizer.
  const std::shared_ptr<const void> owner(impl_->saved.get(), [memory = impl_->saved](const void*) {
    memory->held.store(false, std::memory_order_release);
  });
  for (size_t i = 0; i < names.size(); ++i) {
    state.tensors.push_back({names[i], SharedValues(std::as_const(impl_->saved->tensors[i]).span(), owner)});
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
  for (size_t i = 0; i < impl_->live->tensors.size(); ++i) {
    const std::span<float> out = impl_->live->tensors[i].span();
    if (i < names.size()) {
      std::copy(state.tensors[i].values.begin(), state.tensors[i].values.end(), out.begin());
    } else {
      std::fill(out.begin(), out.end(), 0.0f);
    }
  }
  try {
    for (Impl::Chunk& chunk : impl_->chunks) {
      chunk.step = state.step;
      chunk.in_saved = false;
      impl_->BindState(chunk);
    }
    impl_->saved.reset();
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("cannot restore the optimizer: ", error.what()));
  }
}

}  // namespace millrace
