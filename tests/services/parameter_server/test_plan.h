#pragma once

#include <cstdint>

#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/schedule.h"

namespace millrace {

// A small job: what a test does not set is 40 training samples, batch 16 (so steps of 16, 16 and 8 samples), 4 slots,
// 2 epochs, 10 validation and 12 test samples in batches of 4. Networks and data sets are not described.
struct TestPlan {
  uint32_t slots = 4;
  uint32_t batch_size = 16;
  uint32_t epochs = 2;
  uint32_t checkpoint_steps = 0;
  uint64_t train_count = 40;
  uint32_t validation_count = 10;
  uint32_t test_count = 12;
  uint32_t evaluation_batch_size = 4;
  uint64_t start_version = 0;
  uint64_t parameter_count = 256;
  uint32_t staleness = 0;
  bool unbounded = false;

  v1::JobPlan Build() const {
    v1::JobPlan plan;
    v1::JobSpec& spec = *plan.mutable_spec();
    spec.set_model_name("mnist");
    spec.set_architecture("cnn");
    spec.set_slots(slots);
    spec.set_batch_size(batch_size);
    spec.set_epochs(epochs);
    spec.set_checkpoint_steps(checkpoint_steps);
    spec.set_validation_count(validation_count);
    spec.set_evaluation_batch_size(evaluation_batch_size);
    spec.set_normalization(v1::NORMALIZATION_UNIT);
    spec.mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_SGD);
    spec.mutable_optimizer()->set_learning_rate(0.1);
    spec.mutable_asynchrony()->set_staleness(staleness);
    spec.mutable_asynchrony()->set_unbounded(unbounded);
    plan.mutable_dataset()->set_name("tiny");
    plan.mutable_dataset()->set_fingerprint("0123456789abcdef");
    plan.mutable_dataset()->set_train_count(train_count);
    plan.mutable_dataset()->set_validation_count(validation_count);
    plan.mutable_dataset()->set_test_count(test_count);
    plan.set_parameter_count(parameter_count);
    plan.set_steps_per_epoch(StepsPerEpoch(train_count, batch_size));
    plan.set_total_steps(plan.steps_per_epoch() * epochs);
    plan.set_start_version(start_version);
    return plan;
  }
};

}  // namespace millrace
