#include "services/parameter_server/optimizer.h"

#include <cmath>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "common/tensor/flat_layout.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/small_plan.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// Several chunks and blocks, and an end that is no multiple of any vector width.
constexpr uint64_t kChunk = 2 * 32768;
constexpr uint64_t kElements = 2 * kChunk + 32768 + 10007;

v1::OptimizerSpec AdamW() {
  v1::OptimizerSpec spec = Adam();
  spec.set_kind(v1::OPTIMIZER_KIND_ADAMW);
  spec.set_weight_decay(0.01);
  return spec;
}
v1::OptimizerSpec AdamWithDecay() {
  v1::OptimizerSpec spec = Adam();
  spec.set_weight_decay(0.01);
  return spec;
}

std::vector<float> Weights(uint64_t count) { return SlotGradient(99, 99, count); }

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

bool SameState(const OptimizerState& a, const OptimizerState& b) {
  if (a.step != b.step || a.tensors.size() != b.tensors.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    if (a.tensors[i].name != b.tensors[i].name || !SameBits(a.tensors[i].values, b.tensors[i].values)) return false;
  }
  return true;
}

std::unique_ptr<ShardOptimizer> Make(const v1::OptimizerSpec& spec, uint64_t elements) {
  auto optimizer = ShardOptimizer::Create(spec, elements, kChunk);
  EXPECT_THAT(optimizer, IsOk());
  return *std::move(optimizer);
}

// Last chunk first: the order must not matter.
absl::Status Step(ShardOptimizer& optimizer, std::span<float> weights, std::span<const float> gradient,
                  double learning_rate = 1e-3) {
  absl::Status status;
  for (uint64_t chunk = optimizer.chunks(); chunk-- > 0 && status.ok();) {
    status = optimizer.Step(chunk, weights, gradient, learning_rate);
  }
  return status;
}

double Rate(uint64_t step) { return 1e-3 / static_cast<double>(step + 1); }

// Runs steps [begin, end) with the gradients of those steps.
void Train(ShardOptimizer& optimizer, std::span<float> weights, uint64_t begin, uint64_t end, ElementRange range) {
  for (uint64_t step = begin; step < end; ++step) {
    const auto gradient = SlotGradient(step, 0, kElements);
    ASSERT_THAT(Step(optimizer, weights, std::span(gradient).subspan(range.begin, range.size()), Rate(step)), IsOk());
  }
}

struct Named {
  std::string name;
  v1::OptimizerSpec spec;

  friend void PrintTo(const Named& named, std::ostream* out) { *out << named.name; }
};
class EveryOptimizerTest : public testing::TestWithParam<Named> {};

TEST_P(EveryOptimizerTest, ShardedEqualsUnsharded) {
  std::vector<float> whole = Weights(kElements);
  auto optimizer = Make(GetParam().spec, kElements);
  Train(*optimizer, whole, 0, 5, {0, kElements});
  EXPECT_FALSE(SameBits(whole, Weights(kElements)));

  for (uint32_t shards : {2u, 3u, 7u, 40u}) {
    std::vector<float> parts = Weights(kElements);
    const std::vector<ElementRange> ranges = *ShardRanges(kElements, shards);
    for (const ElementRange range : ranges) {
      auto part = Make(GetParam().spec, range.size());
      Train(*part, std::span(parts).subspan(range.begin, range.size()), 0, 5, range);
    }
    EXPECT_TRUE(SameBits(parts, whole)) << shards;
  }
}

TEST_P(EveryOptimizerTest, ChunkedEqualsUnchunked) {
  std::vector<float> chunked = Weights(kElements), whole = chunked;
  Train(*Make(GetParam().spec, kElements), chunked, 0, 3, {0, kElements});
  auto optimizer = ShardOptimizer::Create(GetParam().spec, kElements, 8 * kChunk);
  ASSERT_THAT(optimizer, IsOk());
  Train(**optimizer, whole, 0, 3, {0, kElements});
  EXPECT_TRUE(SameBits(chunked, whole));
}

TEST_P(EveryOptimizerTest, SavedAndLoadedGoesOnWithTheSameBits) {
  for (uint64_t saved_at : {0u, 1u, 3u}) {
    std::vector<float> weights = Weights(kElements);
    auto optimizer = Make(GetParam().spec, kElements);
    Train(*optimizer, weights, 0, saved_at, {0, kElements});
    const OptimizerState state = optimizer->Save();
    EXPECT_EQ(state.step, saved_at);
    std::vector<float> restored = weights;
    Train(*optimizer, weights, saved_at, 6, {0, kElements});

    auto other = Make(GetParam().spec, kElements);
    std::vector<float> scratch = Weights(kElements);
    Train(*other, scratch, 0, 2, {0, kElements});  // what it remembers must go
    ASSERT_THAT(other->Load(state), IsOk());
    EXPECT_TRUE(SameState(other->Save(), state));
    Train(*other, restored, saved_at, 6, {0, kElements});
    EXPECT_TRUE(SameBits(restored, weights)) << saved_at;
    EXPECT_TRUE(SameState(other->Save(), optimizer->Save())) << saved_at;
  }
}

TEST_P(EveryOptimizerTest, WhatWasSavedStaysAsItWas) {
  auto optimizer = Make(GetParam().spec, kElements), undisturbed = Make(GetParam().spec, kElements);
  std::vector<float> weights = Weights(kElements), same = weights;
  std::vector<std::pair<OptimizerState, OptimizerState>> saved;  // and a copy of it
  for (uint64_t step = 0; step < 8; ++step) {
    Train(*optimizer, weights, step, step + 1, {0, kElements});
    Train(*undisturbed, same, step, step + 1, {0, kElements});
    for (int times = 0; times < 2; ++times) {
      OptimizerState state = optimizer->Save(), copy{.step = state.step, .tensors = {}};
      for (const auto& tensor : state.tensors) {
        copy.tensors.push_back({tensor.name, std::vector<float>(tensor.values.begin(), tensor.values.end())});
      }
      saved.emplace_back(std::move(state), std::move(copy));
    }
    if (step % 3 == 2) saved.erase(saved.begin(), saved.begin() + 3);  // their memory serves again
  }
  for (const auto& [state, copy] : saved) EXPECT_TRUE(SameState(state, copy)) << state.step;
  EXPECT_TRUE(SameBits(weights, same));
  EXPECT_TRUE(SameState(optimizer->Save(), undisturbed->Save()));
}

TEST_P(EveryOptimizerTest, WeightsMayMoveBetweenSteps) {
  std::vector<float> stay = Weights(kElements), first = stay;
  auto a = Make(GetParam().spec, kElements), b = Make(GetParam().spec, kElements);
  Train(*a, stay, 0, 4, {0, kElements});
  Train(*b, first, 0, 2, {0, kElements});
  std::vector<float> second = first;
  Train(*b, second, 2, 4, {0, kElements});
  EXPECT_TRUE(SameBits(second, stay));
}

TEST_P(EveryOptimizerTest, RefusesAnotherState) {
  auto optimizer = Make(GetParam().spec, kElements);
  OptimizerState state = optimizer->Save();
  state.tensors.push_back({"bogus", std::vector<float>(kElements)});
  EXPECT_THAT(optimizer->Load(state), StatusIs(StatusCode::kInvalidArgument));
  auto smaller = Make(GetParam().spec, kElements - 1);
  std::vector<float> weights = Weights(kElements - 1), gradient(kElements - 1);
  ASSERT_THAT(Step(*smaller, weights, gradient), IsOk());
  if (smaller->Save().tensors.empty()) return;  // nothing that could not fit
  EXPECT_THAT(optimizer->Load(smaller->Save()), StatusIs(StatusCode::kInvalidArgument));
}

INSTANTIATE_TEST_SUITE_P(All, EveryOptimizerTest,
                         testing::Values(Named{"Sgd", Sgd(0)}, Named{"Momentum", Sgd(0.9)}, Named{"Adam", Adam()},
                                         Named{"AdamWithDecay", AdamWithDecay()}, Named{"AdamW", AdamW()}),
                         testing::PrintToStringParamName());

TEST(ShardOptimizerTest, AdamFollowsItsPaper) {
  auto optimizer = Make(Adam(), 64);
  std::vector<float> weights(64, 1.0f), gradient(64, 0.5f);
  double m = 0, v = 0, w = 1;
  for (int step = 1; step <= 3; ++step) {
    ASSERT_THAT(Step(*optimizer, weights, gradient), IsOk());
    m = 0.9 * m + 0.1 * 0.5;
    v = 0.999 * v + 0.001 * 0.25;
    w -= 1e-3 * (m / (1 - std::pow(0.9, step))) / (std::sqrt(v / (1 - std::pow(0.999, step))) + 1e-7);
    EXPECT_NEAR(weights[7], w, 1e-6);
  }
}

TEST(ShardOptimizerTest, MomentumFollowsItsDefinition) {
  auto optimizer = Make(Sgd(0.9), 1);
  std::vector<float> weights = {1}, gradient = {1};
  double velocity = 0, w = 1;
  for (int step = 0; step < 4; ++step) {
    ASSERT_THAT(Step(*optimizer, weights, gradient, 0.1), IsOk());
    velocity = 0.9 * velocity + 1;
    w -= 0.1 * velocity;
    EXPECT_NEAR(weights[0], w, 1e-6);
  }
}

// What each optimizer makes of weight decay when the rate changes from step to step: an L2 penalty in the gradient, or
// for AdamW (Loshchilov and Hutter, 2019) a part of the weight, times the rate.
TEST(ShardOptimizerTest, WeightDecayFollowsItsDefinitionAtEveryRate) {
  constexpr double kDecay = 0.1;
  for (v1::OptimizerSpec spec : {Sgd(0.9), Adam(), AdamW()}) {
    spec.set_weight_decay(kDecay);
    auto optimizer = Make(spec, 64);
    std::vector<float> weights(64, 1.0f);
    double m = 0, v = 0, w = 1;
    for (int step = 1; step <= 4; ++step) {
      const double rate = 0.1 / step, gradient = 0.5 - 0.1 * step;
      ASSERT_THAT(Step(*optimizer, weights, std::vector<float>(64, static_cast<float>(gradient)), rate), IsOk());
      const bool decoupled = spec.kind() == v1::OPTIMIZER_KIND_ADAMW;
      const double g = decoupled ? gradient : gradient + kDecay * w;
      if (decoupled) w -= rate * kDecay * w;
      if (spec.kind() == v1::OPTIMIZER_KIND_SGD) {
        m = step == 1 ? g : 0.9 * m + g;
        w -= rate * m;
      } else {
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        w -= rate * (m / (1 - std::pow(0.9, step))) / (std::sqrt(v / (1 - std::pow(0.999, step))) + spec.epsilon());
      }
      EXPECT_NEAR(weights[63], w, 2e-6) << v1::OptimizerKind_Name(spec.kind()) << ", step " << step;
    }
  }
}

TEST(ShardOptimizerTest, RefusesBadSpecsAndSizes) {
  v1::OptimizerSpec spec = Adam();
  spec.set_beta1(1);
  EXPECT_THAT(ShardOptimizer::Create(spec, 64, kChunk), StatusIs(StatusCode::kInvalidArgument, HasSubstr("beta1")));
  std::vector<float> weights(64), gradient(63);
  EXPECT_THAT(Make(Adam(), 64)->Step(0, weights, gradient, 1e-3), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Make(Adam(), 64)->Step(1, weights, weights, 1e-3), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(ShardOptimizer::Create(Adam(), 64, 1000), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1000")));
}

}  // namespace
}  // namespace millrace
