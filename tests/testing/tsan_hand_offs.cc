// For the thread sanitizer only: tells it of the locks and queues inside libraries that were not built for it.
//
// Debian's gRPC and Abseil are not instrumented, so the sanitizer does not see that one thread waited for another in
// there, and takes everything that passes through gRPC for a race. The functions below come before those of the same
// names in the shared libraries (the executable is searched first, also for what the libraries call among themselves):
// each calls the library's own and says what it orders. absl::Mutex and absl::CondVar are all that gRPC locks with. A
// tag carries what was done before its operation was started to the thread that ends the operation, and from there to
// whoever gets it from the completion queue.
//
// What remains unseen are gRPC's atomics, mostly reference counts: tests/suppressions/tsan.txt. The mangled names are
// those of Debian's Abseil; with another build of it, Next finds nothing and the first lock crashes.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace {

// The function of this name in the libraries.
template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
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

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static const auto next = Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  return Acquire(next(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline, void* reserved) {
  static const auto next = Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  return Acquire(next(queue, tag, deadline, reserved));
}

}  // extern "C"
