#pragma once

#include <cstdint>

#include "millrace/v1/coordinator.pb.h"

namespace millrace {

inline constexpr uint32_t kTinySide = 6;  // pixels; a FakeDataService for it has images of kTinySide squared

// A job of ten steps whose network is quickly computed.
inline v1::JobPlan TinyJob(uint32_t slots) {
  v1::JobPlan plan;
  plan.mutable_spec()->set_model_name("tiny");
  plan.mutable_spec()->set_slots(slots);
  plan.mutable_spec()->set_seed(1);
  plan.mutable_network()->set_architecture("cnn");
  plan.mutable_network()->set_channels(1);
  plan.mutable_network()->set_height(kTinySide);
  plan.mutable_network()->set_width(kTinySide);
  plan.mutable_network()->set_classes(2);
  plan.mutable_network()->set_standard_deviation(1);
  plan.set_steps_per_epoch(10);
  plan.set_total_steps(10);
  return plan;
}

}  // namespace millrace
