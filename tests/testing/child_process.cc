#include "tests/testing/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <system_error>
#include <thread>

#include "absl/time/clock.h"

extern char** environ;

namespace millrace {
namespace {

// Takes what the pipe holds; closes it at its end.
void Drain(int& fd, std::string& text) {
  char buffer[4096];
  const ssize_t count = read(fd, buffer, sizeof buffer);
  if (count > 0) {
    text.append(buffer, static_cast<size_t>(count));
  } else if (count == 0) {
    close(fd);
    fd = -1;
  }
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments) {
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "pipe2");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err[1], STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int error = posix_spawn(&pid_, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  close(out[1]);
  close(err[1]);
  stdout_.fd = out[0];
  stderr_.fd = err[0];
  if (error != 0) {
    close(out[0]);
    close(err[0]);
    throw std::system_error(error, std::generic_category(), "cannot start " + arguments[0]);
  }
}

ChildProcess::~ChildProcess() {
  if (!reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  for (const int fd : {stdout_.fd, stderr_.fd}) {
    if (fd >= 0) close(fd);
  }
}

bool ChildProcess::Pump(absl::Time deadline) {
  if (stdout_.fd < 0 && stderr_.fd < 0) return false;
  pollfd fds[] = {{stdout_.fd, POLLIN, 0}, {stderr_.fd, POLLIN, 0}};  // poll skips negative descriptors
  const int64_t wait_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
  poll(fds, 2, static_cast<int>(std::clamp<int64_t>(wait_ms, 0, 1000)));
  if (fds[0].revents != 0) Drain(stdout_.fd, stdout_.text);
  if (fds[1].revents != 0) Drain(stderr_.fd, stderr_.text);
  return true;
}

std::string ChildProcess::ReadLine(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  size_t end;
  while ((end = stdout_.text.find('\n')) == std::string::npos) {
    if (absl::Now() > deadline || !Pump(deadline)) return "";
  }
  std::string line = stdout_.text.substr(0, end);
  stdout_.text.erase(0, end + 1);
  return line;
}

void ChildProcess::Kill(int signal) {
  if (!reaped_) kill(pid_, signal);
}

int ChildProcess::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!reaped_) {
    int status;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      result_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      break;
    }
    if (absl::Now() > deadline) kill(pid_, SIGKILL);
    if (!Pump(absl::Now() + absl::Milliseconds(5))) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  // A grandchild may hold the pipes open: take only what is there.
  const absl::Time rest = absl::Now() + absl::Milliseconds(500);
  while (absl::Now() < rest && Pump(rest)) {
  }
  return result_;
}

}  // namespace millrace
