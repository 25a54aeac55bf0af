#pragma once

#include <csignal>

#include "absl/time/time.h"

namespace millrace {

// Turns SIGTERM and SIGINT into something a thread can wait for; no code runs inside a signal handler.
//
// Construct it in main before any other thread exists: it blocks the two signals in the calling thread, and threads
// inherit that. (So do children: posix_spawn them with POSIX_SPAWN_SETSIGMASK and an empty mask.) SIGPIPE is ignored
// from now on; a broken connection is an error code instead. One object per process.
class ShutdownSignals {
 public:
  ShutdownSignals();
  // Signals that came and were not waited for are forgotten; the thread's old mask is back.
  ~ShutdownSignals();
  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

  // Returns when a signal has come or Request() was called, at once if that was earlier: 0 for a request, else the
  // signal's number.
  int Wait();

  // As Wait, for at most `timeout`; -1 when the time is up.
  int WaitFor(absl::Duration timeout);

  // Ends the waits as if a signal had come. Any thread.
  void Request();

  // After this the next SIGINT ends the process at once: for a drain that the person at the terminal does not want to
  // wait for. (Not SIGTERM: a terminal's interrupt reaches a whole process group, and a parent's SIGTERM on top of it
  // must not cut the drain short.) Call on the thread that constructed the object.
  void LetInterruptKill();

 private:
  sigset_t old_mask_;
  int signal_fd_ = -1;
  int request_fd_ = -1;
};

}  // namespace millrace
