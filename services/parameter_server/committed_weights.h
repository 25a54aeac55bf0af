// The weights of versions that are gone from a shard's memory, of which there is a committed checkpoint.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/mutex.h"
#include "common/tensor/flat_layout.h"
#include "millrace/v1/coordinator.pb.h"
#include "services/parameter_server/weights_buffer.h"

namespace millrace {

// Threads: any.
class CommittedWeights {
 public:
  // Of the elements `range` of the plan's job.
  CommittedWeights(const v1::JobPlan& plan, ElementRange range, FileSystem* files = &RealFileSystem());

  // Waits for the disk, but for the version that was read last. NOT_FOUND if the version is not committed, or its
  // checkpoint cannot be read.
  absl::StatusOr<WeightsVersion> Read(uint64_t version);

 private:
  const std::string output_dir_;
  const uint64_t parameter_count_;
  const v1::OptimizerSpec optimizer_;
  const ElementRange range_;
  FileSystem& files_;
  Mutex mutex_;  // held while a checkpoint is read: many workers ask for the same version, and it is read once
  WeightsVersion last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
