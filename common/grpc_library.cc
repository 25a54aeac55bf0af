#include "common/grpc_library.h"

#include <grpc/grpc.h>

#include <mutex>

namespace millrace {

void KeepGrpcUp() {
  static std::once_flag once;
  std::call_once(once, grpc_init);
}

}  // namespace millrace
