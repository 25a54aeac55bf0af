// A small job for the shard's tests, and gradients for it.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "common/tensor/number_format.h"
#include "common/tensor/slot_tree.h"
#include "common/tensor/wire.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

inline v1::OptimizerSpec Adam() {
  v1::OptimizerSpec spec;
  spec.set_kind(v1::OPTIMIZER_KIND_ADAM);
  spec.set_learning_rate(1e-3);
  spec.set_beta1(0.9);
  spec.set_beta2(0.999);
  spec.set_epsilon(1e-7);
  return spec;
}

inline v1::OptimizerSpec Sgd(double momentum) {
  v1::OptimizerSpec spec;
  spec.set_kind(v1::OPTIMIZER_KIND_SGD);
  spec.set_learning_rate(0.1);
  spec.set_momentum(momentum);
  return spec;
}

// 2 epochs of 3 steps over 40 samples in batches of 16 (the last step of an epoch has 8), checkpoints also every 2
// steps.
inline v1::JobPlan SmallPlan(uint64_t parameter_count, uint32_t slots) {
  v1::JobPlan plan;
  *plan.mutable_spec()->mutable_optimizer() = Adam();
  plan.mutable_spec()->set_batch_size(16);
  plan.mutable_spec()->set_slots(slots);
  plan.mutable_spec()->set_epochs(2);
  plan.mutable_spec()->set_checkpoint_steps(2);
  plan.mutable_dataset()->set_train_count(40);
  plan.set_run_id(0xfeed);
  plan.set_parameter_count(parameter_count);
  plan.set_steps_per_epoch(3);
  plan.set_total_steps(6);
  return plan;
}

// Some gradient of one slot over the whole flat vector: values of many magnitudes, so that the order of additions
// shows.
inline std::vector<float> SlotGradient(uint64_t step, uint32_t slot, uint64_t count) {
  std::vector<float> gradient(count);
  uint64_t state = step * 1000003 + slot * 7919 + 1;
  for (float& value : gradient) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value = std::ldexp(static_cast<float>(static_cast<int32_t>(state >> 32)), static_cast<int>(state >> 20 & 15) - 38);
  }
  return gradient;
}

// The sum over a node, by the definition of the tree; every node is rounded to the wire's number format.
inline std::vector<float> NodeGradient(uint64_t step, SlotNode node, uint32_t slots, uint64_t count,
                                       v1::NumberFormat wire = v1::NUMBER_FORMAT_FLOAT32) {
  std::vector<float> sum;
  if (node.end - node.begin == 1) {
    sum = SlotGradient(step, node.begin, count);
  } else {
    uint32_t width = 1;
    while (2 * width < node.end - node.begin) width *= 2;
    sum = NodeGradient(step, {node.begin, node.begin + width}, slots, count, wire);
    const std::vector<float> right = NodeGradient(step, {node.begin + width, node.end}, slots, count, wire);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
  }
  Round(wire, sum);
  return sum;
}

}  // namespace millrace
