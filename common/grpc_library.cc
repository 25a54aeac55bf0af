#include "common/grpc_library.h"

#include <grpc/grpc.h>

#include <mutex>

#include "absl/synchronization/mutex.h"

namespace millrace {

void KeepGrpcUp() {
  static std::once_flag once;
  std::call_once(once, [] {
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    grpc_init();
  });
}

}  // namespace millrace
