#include "tests/simulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace millrace::simulation {

StackPool::~StackPool() {
  for (char* stack : free_) munmap(stack, kStackBytes);
}

char* StackPool::Take() {
  if (!free_.empty()) {
    char* const stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) std::abort();
  mprotect(stack, 4096, PROT_NONE);  // an overflow faults instead of writing elsewhere
  return static_cast<char*>(stack);
}

Fiber::Fiber(StackPool* stacks, std::function<void()> body)
    : stacks_(*stacks), stack_(stacks->Take()), body_(std::move(body)) {
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = StackPool::kStackBytes;
  inside_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&inside_, reinterpret_cast<void (*)()>(&Fiber::Enter), 2, static_cast<unsigned>(self),
              static_cast<unsigned>(self >> 32));
#if defined(__SANITIZE_THREAD__)
  tsan_inside_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!done_) std::abort();
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(tsan_inside_);
#endif
  stacks_.Give(stack_);
}

void Fiber::Enter(unsigned low, unsigned high) {
  Fiber* const self = reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
  self->AfterEntering();
  self->body_();
  self->body_ = nullptr;  // what it holds goes while its stack is still there
  self->done_ = true;
  self->BeforeLeaving(/*for_good=*/true);
  setcontext(&self->outside_);
}

void Fiber::Resume() {
  BeforeEntering();
  swapcontext(&outside_, &inside_);
  AfterLeaving();
}

void Fiber::Yield() {
  BeforeLeaving(/*for_good=*/false);
  swapcontext(&inside_, &outside_);
  AfterEntering();
}

void Fiber::BeforeEntering() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&outside_fake_stack_, stack_, StackPool::kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  tsan_outside_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_inside_, 0);
#endif
}

void Fiber::AfterEntering() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(inside_fake_stack_, &outside_stack_, &outside_stack_bytes_);
#endif
}

void Fiber::BeforeLeaving([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &inside_fake_stack_, outside_stack_, outside_stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(tsan_outside_, 0);
#endif
}

void Fiber::AfterLeaving() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(outside_fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace millrace::simulation
