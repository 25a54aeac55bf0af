// A function on a stack of its own, which can be left in the middle and entered again: how code that blocks (the
// worker's step loop, the checkpoint writer) runs under the simulator's one thread. Known to the address and thread
// sanitizers.
//
// Threads: one. A fiber must be done before it is destroyed.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace millrace::simulation {

// Stacks, which are costly to map, for one fiber after the other.
class StackPool {
 public:
  static constexpr size_t kStackBytes = 256 << 10;

  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  char* Take();
  void Give(char* stack) { free_.push_back(stack); }

 private:
  std::vector<char*> free_;
};

class Fiber {
 public:
  Fiber(StackPool* stacks, std::function<void()> body);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the body until it yields or ends. Not from within a fiber.
  void Resume();
  // Leaves the body, back to Resume. From within the body only.
  void Yield();
  bool done() const { return done_; }

 private:
  static void Enter(unsigned low, unsigned high);

  StackPool& stacks_;
  char* const stack_;
  std::function<void()> body_;
  bool done_ = false;
  ucontext_t inside_;
  ucontext_t outside_;

  // What the sanitizers must be told at each switch.
  void BeforeEntering();
  void AfterEntering();
  void BeforeLeaving(bool for_good);
  void AfterLeaving();
  void* inside_fake_stack_ = nullptr;
  void* outside_fake_stack_ = nullptr;
  const void* outside_stack_ = nullptr;
  size_t outside_stack_bytes_ = 0;
  void* tsan_inside_ = nullptr;
  void* tsan_outside_ = nullptr;
};

}  // namespace millrace::simulation
