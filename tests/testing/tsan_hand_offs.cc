// For the thread sanitizer only: tells it of the locks and queues inside libraries that were not built for it.
//
// Debian's gRPC and Abseil are not instrumented, so the sanitizer does not see that one thread waited for another in
// there, and takes everything that passes through gRPC for a race. The functions below come before those of the same
// names in the shared libraries (the executable is searched first, also for what the libraries call among themselves):
// each calls the library's own and says what it orders. absl::Mutex and absl::CondVar are all that gRPC locks with. A
// tag carries what was done before its operation was started to the thread that ends the operation, and from there to
// whoever gets it from the completion queue.
//
// What remains unseen are gRPC's atomics, mostly reference counts (tests/suppressions/tsan.txt), and what
// uninstrumented code does to our memory: that gRPC still sends a buffer, or LibTorch still writes one, the sanitizer
// cannot tell. The shared locks of absl::Mutex and its conditions are not here, since nothing uses them. The mangled
// names are those of Debian's Abseil.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace {

// The function of this name in the libraries.
template <typename Function>
Function* Next(const char* name) {
  void* const function = dlsym(RTLD_NEXT, name);
  if (function == nullptr) {
    std::fprintf(stderr, "%s is not in any library: was Abseil or gRPC built otherwise?\n", name);
    std::abort();
  }
  return reinterpret_cast<Function*>(function);
}

grpc_event Acquire(const grpc_event& event) {
  if (event.type == GRPC_OP_COMPLETE && event.tag != nullptr) __tsan_acquire(event.tag);
  return event;
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto next = Next<void(Mutex*)>("_ZN4absl7debian35Mutex4LockEv");
  next(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto next = Next<bool(Mutex*)>("_ZN4absl7debian35Mutex7TryLockEv");
  const bool locked = next(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static const auto next = Next<void(Mutex*)>("_ZN4absl7debian35Mutex6UnlockEv");
  __tsan_release(this);
  next(this);
}

void CondVar::Wait(Mutex* mutex) {
  static const auto next = Next<void(CondVar*, Mutex*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  next(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto next =
      Next<bool(CondVar*, Mutex*, Duration)>("_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool timed_out = next(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto next =
      Next<bool(CondVar*, Mutex*, Time)>("_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool timed_out = next(this, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

ABSL_NAMESPACE_END
}  // namespace absl

// Inside gRPC: an operation has ended, and its tag goes to the queue.
struct grpc_cq_completion;
void grpc_cq_end_op(grpc_completion_queue* queue, void* tag, absl::Status error,
                    void (*done)(void*, grpc_cq_completion*), void* done_argument, grpc_cq_completion* storage,
                    bool internal) {
  static const auto next = Next<decltype(grpc_cq_end_op)>(
      "_Z14grpc_cq_end_opP21grpc_completion_queuePvN4absl7debian36StatusEPFvS1_P18grpc_cq_completionES1_S6_b");
  if (tag != nullptr) {
    __tsan_acquire(tag);
    __tsan_release(tag);
  }
  next(queue, tag, std::move(error), done, done_argument, storage, internal);
}

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag, void* reserved) {
  static const auto next = Next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  if (tag != nullptr) __tsan_release(tag);
  return next(call, ops, count, tag, reserved);
}

// What was written to a slice's memory, and what gRPC did with it, comes before it is given back.
grpc_slice grpc_slice_new_with_user_data(void* data, size_t size, void (*destroy)(void*), void* user_data) {
  static const auto next = Next<decltype(grpc_slice_new_with_user_data)>("grpc_slice_new_with_user_data");
  struct Owner {
    void (*destroy)(void*);
    void* user_data;
  };
  auto* owner = new Owner{destroy, user_data};
  __tsan_release(owner);
  const auto give_back = [](void* argument) {
    __tsan_acquire(argument);
    const Owner owner = *static_cast<Owner*>(argument);
    delete static_cast<Owner*>(argument);
    owner.destroy(owner.user_data);
  };
  return next(data, size, give_back, owner);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static const auto next = Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  return Acquire(next(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline, void* reserved) {
  static const auto next = Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  return Acquire(next(queue, tag, deadline, reserved));
}

}  // extern "C"
