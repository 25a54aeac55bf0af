// The first images of the validation split, on which exported versions are described (ServableManifest::reference).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "grpcpp/security/credentials.h"
#include "millrace/v1/coordinator.pb.h"

namespace millrace {

class ReferenceImages {
 public:
  static constexpr uint64_t kRowsMax = 512;

  struct Options {
    std::vector<std::string> addresses;                               // of the data service
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
    absl::Duration timeout = absl::Seconds(2);                        // for all of them
  };

  ReferenceImages(Options options, v1::JobPlan plan);

  // uint8 [rows, channels, height, width], rows at most kRowsMax. Asks the data service until it has answered once.
  // Empty, with a line in the log, if it does not answer in time, and empty if the job has no validation split. Any
  // thread.
  std::vector<uint8_t> Get();

 private:
  absl::StatusOr<std::vector<uint8_t>> Fetch() const;

  const Options options_;
  const v1::JobPlan plan_;
  Mutex mutex_;
  std::vector<uint8_t> images_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
