#include "common/shutdown.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <system_error>

#include "absl/time/clock.h"

namespace millrace {
namespace {

sigset_t EndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

ShutdownSignals::ShutdownSignals() {
  const sigset_t signals = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &signals, &old_mask_);
  std::signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  request_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (signal_fd_ < 0 || request_fd_ < 0) throw std::system_error(errno, std::generic_category(), "signalfd, eventfd");
}

ShutdownSignals::~ShutdownSignals() {
  signalfd_siginfo ignored;
  while (read(signal_fd_, &ignored, sizeof ignored) == sizeof ignored) {
  }
  close(signal_fd_);
  close(request_fd_);
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

int ShutdownSignals::Wait() { return WaitFor(absl::InfiniteDuration()); }

int ShutdownSignals::WaitFor(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {request_fd_, POLLIN, 0}};
    int wait_ms = -1;
    if (timeout != absl::InfiniteDuration()) {
      const int64_t left_ms = absl::ToInt64Milliseconds(absl::Ceil(deadline - absl::Now(), absl::Milliseconds(1)));
      wait_ms = static_cast<int>(std::clamp<int64_t>(left_ms, 0, INT_MAX));
    }
    const int ready = poll(fds, 2, wait_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return -1;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof info) == sizeof info) return static_cast<int>(info.ssi_signo);
    if (fds[1].revents != 0) return 0;
  }
}

void ShutdownSignals::Request() {
  const uint64_t one = 1;
  // Fails only if the count is at its maximum, and then the waits have ended already.
  if (write(request_fd_, &one, sizeof one) < 0) return;
}

void ShutdownSignals::LetInterruptKill() {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_UNBLOCK, &interrupt, nullptr);
}

}  // namespace millrace
