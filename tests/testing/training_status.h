#pragma once

#include "millrace/v1/coordinator.pb.h"

namespace millrace {

// Of a job in its third epoch of ten, at step 1,123 of 4,220.
inline v1::JobStatus TrainingStatus() {
  v1::JobStatus status;
  status.set_state(v1::JobStatus::STATE_TRAINING);
  status.mutable_plan()->mutable_spec()->set_epochs(10);
  status.mutable_plan()->set_total_steps(4220);
  status.set_version(1123);
  status.set_epoch(2);
  status.set_train_loss(0.05123);
  status.set_images_per_second(12345.6);
  status.set_elapsed_seconds(112.3);
  return status;
}

}  // namespace millrace
