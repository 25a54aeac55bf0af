// The simulated world: a clock that jumps from event to event, one source of randomness, and processes that can be
// stopped and killed. Everything that happens is an event; two runs of one seed are the same, event by event.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/random.h"
#include "tests/simulation/fiber.h"

namespace millrace::simulation {

class World : public Clock {
 public:
  // `trace`: every line of the story goes to stderr.
  World(uint64_t seed, StackPool* stacks, bool trace) : random_(seed, 0), stacks_(*stacks), trace_(trace) {}

  absl::Time Now() const override { return now_; }

  // --- Chance ---
  uint32_t Random(uint32_t bound) { return random_.NextUint32() % bound; }  // in [0, bound)
  bool Chance(double probability) { return random_.NextUniform() < probability; }
  absl::Duration Between(absl::Duration least, absl::Duration most) {
    return least + (most - least) * random_.NextUniform();
  }

  // --- Events ---
  // Those of one time happen in the order in which they were posted.
  void Post(absl::Duration delay, std::function<void()> event);
  // Lets the next event happen; false if there is none.
  bool Step();
  uint64_t events() const { return events_; }
  uint64_t digest() const { return digest_; }  // of when everything happened

  // --- What is said about it ---
  void Trace(absl::FunctionRef<std::string()> line);
  // Something that must never be; the first one stays.
  void Violate(std::string what);
  void Expect(bool truth, std::string_view what) {
    if (!truth) Violate(std::string(what));
  }
  const std::string& violation() const { return violation_; }

  StackPool& stacks() { return stacks_; }

 private:
  struct Event {
    absl::Time time;
    uint64_t sequence;
    std::function<void()> run;
    bool operator<(const Event& other) const {
      return time != other.time ? time > other.time : sequence > other.sequence;
    }
  };

  PhiloxStream random_;
  StackPool& stacks_;
  const bool trace_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::priority_queue<Event> queue_;
  uint64_t sequence_ = 0;
  uint64_t events_ = 0;
  uint64_t digest_ = 0;
  std::string violation_;
};

// One life of a process. What it does are events and fibers; while it is stopped they are held back, and when it is
// killed they never happen: its fibers find every wait ended and every write refused, and run to their ends.
class Process : public std::enable_shared_from_this<Process> {
 public:
  static std::shared_ptr<Process> Start(World* world, std::string name) {
    return std::shared_ptr<Process>(new Process(world, std::move(name)));
  }
  ~Process();

  World& world() { return world_; }
  const std::string& name() const { return name_; }
  bool alive() const { return alive_; }
  bool running() const { return alive_ && !stopped_; }

  void Post(absl::Duration delay, std::function<void()> event);
  void Spawn(std::function<void()> body);

  // For fibers of this process: false once it is killed.
  bool Sleep(absl::Duration time);
  // Until Notify, or for `time`; may end early.
  bool Wait(absl::Duration time);
  // Something that a fiber may wait for has happened.
  void Notify();
  // Until `done`, which Notify tells of, also while the process is being killed: for what must not go before another
  // fiber has ended.
  void Join(const bool& done);

  // SIGSTOP, SIGCONT, SIGKILL. Not from a fiber of this process.
  void Stop() { stopped_ = true; }
  void Continue();
  void Kill();

 private:
  struct Strand {
    std::unique_ptr<Fiber> fiber;  // null once its body has ended
    uint64_t wait = 0;             // number of the wait it is in; a wake-up for another one means nothing
    bool notifiable = false;
  };

  Process(World* world, std::string name) : world_(*world), name_(std::move(name)) {}

  bool Suspend(absl::Duration time, bool notifiable);
  void Resume(Strand* strand);

  World& world_;
  const std::string name_;
  bool alive_ = true;
  bool stopped_ = false;
  std::vector<std::function<void()>> held_;  // events of a stopped process
  std::vector<std::unique_ptr<Strand>> strands_;
  Strand* current_ = nullptr;
};

}  // namespace millrace::simulation
