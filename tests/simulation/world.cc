#include "tests/simulation/world.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_format.h"

namespace millrace::simulation {

void World::Post(absl::Duration delay, std::function<void()> event) {
  queue_.push({now_ + std::max(delay, absl::ZeroDuration()), sequence_++, std::move(event)});
}

bool World::Step() {
  if (queue_.empty()) return false;
  // The event is not compared any more once it has left the queue.
  std::function<void()> run = std::move(const_cast<Event&>(queue_.top()).run);
  now_ = queue_.top().time;
  queue_.pop();
  ++events_;
  digest_ = (digest_ ^ static_cast<uint64_t>(absl::ToUnixNanos(now_))) * 0x9e3779b97f4a7c15 + events_;
  run();
  return true;
}

void World::Trace(absl::FunctionRef<std::string()> line) {
  if (!trace_) return;
  const double seconds = absl::ToDoubleSeconds(now_ - absl::UnixEpoch() - absl::Hours(1));
  absl::FPrintF(stderr, "%10.6f  %s\n", seconds, line());
}

void World::Violate(std::string what) {
  Trace([&] { return "VIOLATION: " + what; });
  if (violation_.empty()) violation_ = std::move(what);
}

Process::~Process() {
  for (const auto& strand : strands_) {
    if (strand->fiber != nullptr) std::abort();  // was not killed
  }
}

void Process::Post(absl::Duration delay, std::function<void()> event) {
  world_.Post(delay, [self = shared_from_this(), event = std::move(event)]() mutable {
    if (!self->alive_) return;
    if (self->stopped_) {
      self->held_.push_back(std::move(event));
    } else {
      event();
    }
  });
}

void Process::Spawn(std::function<void()> body) {
  auto strand = std::make_unique<Strand>();
  Strand* const started = strand.get();
  strand->fiber = std::make_unique<Fiber>(&world_.stacks(), std::move(body));
  strands_.push_back(std::move(strand));
  Post(absl::ZeroDuration(), [this, started] { Resume(started); });
}

bool Process::Sleep(absl::Duration time) {
  const absl::Time until = world_.Now() + time;
  while (alive_ && world_.Now() < until) Suspend(until - world_.Now(), /*notifiable=*/false);
  return alive_;
}

bool Process::Wait(absl::Duration time) {
  if (time > absl::ZeroDuration()) Suspend(time, /*notifiable=*/true);
  return alive_;
}

bool Process::Suspend(absl::Duration time, bool notifiable) {
  if (!alive_) return false;
  Strand* const strand = current_;
  strand->notifiable = notifiable;
  const uint64_t wait = ++strand->wait;
  Post(time, [this, strand, wait] {
    if (strand->wait == wait) Resume(strand);
  });
  strand->fiber->Yield();
  strand->notifiable = false;
  ++strand->wait;
  return alive_;
}

void Process::Notify() {
  if (!alive_) return;
  for (const auto& strand : strands_) {
    if (!strand->notifiable) continue;
    strand->notifiable = false;
    Post(absl::ZeroDuration(), [this, strand = strand.get(), wait = strand->wait] {
      if (strand->wait == wait) Resume(strand);
    });
  }
}

void Process::Join(const bool& done) {
  while (!done) {
    if (!Wait(absl::Seconds(1)) && !done) current_->fiber->Yield();
  }
}

void Process::Resume(Strand* strand) {
  Strand* const outer = std::exchange(current_, strand);
  strand->fiber->Resume();
  current_ = outer;
  if (!strand->fiber->done()) return;
  strand->fiber.reset();
  ++strand->wait;  // wake-ups on their way are for nobody; the strand itself stays as long as the process
}

void Process::Continue() {
  if (!stopped_) return;
  stopped_ = false;
  for (auto& event : std::exchange(held_, {})) Post(absl::ZeroDuration(), std::move(event));
}

void Process::Kill() {
  if (!alive_) return;
  alive_ = false;
  held_.clear();
  // In turn, since one may wait for another's end; by index, since one may start another on its way out.
  for (bool left = true; left;) {
    left = false;
    for (size_t i = 0; i < strands_.size(); ++i) {
      if (strands_[i]->fiber != nullptr) Resume(strands_[i].get());
      left |= strands_[i]->fiber != nullptr;
    }
  }
}

}  // namespace millrace::simulation
