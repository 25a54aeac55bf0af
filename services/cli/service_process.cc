#include "services/cli/service_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

extern char** environ;

namespace millrace {
namespace {

// A line of a service's stdout is an address pair; anything longer is not for us.
constexpr size_t kLineBytesMax = 4096;
constexpr absl::Duration kStopGrace = absl::Seconds(15);
constexpr absl::Duration kStopPoll = absl::Milliseconds(10);

std::vector<char*> ChildEnvironment() {
  std::vector<char*> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "MILLRACE_")) variables.push_back(*variable);
  }
  variables.push_back(nullptr);
  return variables;
}

// posix_spawn reports errors as return values; the first one counts.
class FirstError {
 public:
  void operator()(int error) {
    if (error_ == 0) error_ = error;
  }
  int get() const { return error_; }

 private:
  int error_ = 0;
};

}  // namespace

std::optional<AnnouncedAddresses> ParseAnnouncement(absl::string_view line) {
  if (!absl::ConsumePrefix(&line, "LISTENING ")) return std::nullopt;
  AnnouncedAddresses addresses;
  for (absl::string_view field : absl::StrSplit(absl::StripSuffix(line, "\n"), ' ', absl::SkipEmpty())) {
    std::string* target = nullptr;
    if (absl::ConsumePrefix(&field, "grpc=")) {
      target = &addresses.grpc;
    } else if (absl::ConsumePrefix(&field, "http=")) {
      target = &addresses.http;
    } else {
      continue;  // a later release may announce more
    }
    if (field != "-") *target = std::string(field);
  }
  return addresses;
}

absl::StatusOr<std::unique_ptr<ServiceProcess>> ServiceProcess::Start(const std::vector<std::string>& command,
                                                                      const std::string& log_file) {
  const int log = open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write the log ", log_file));
  absl::Cleanup close_log = [&] { close(log); };
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  absl::Cleanup close_write_end = [&] { close(pipe_ends[1]); };
  absl::Cleanup close_read_end = [&] { close(pipe_ends[0]); };
  fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  absl::Cleanup destroy_actions = [&] { posix_spawn_file_actions_destroy(&actions); };
  FirstError error;
  error(posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0));
  error(posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO));
  error(posix_spawn_file_actions_adddup2(&actions, log, STDERR_FILENO));
  error(posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1));

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  absl::Cleanup destroy_attributes = [&] { posix_spawnattr_destroy(&attributes); };
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  error(posix_spawnattr_setsigmask(&attributes, &none));
  error(posix_spawnattr_setsigdefault(&attributes, &all));
  error(posix_spawnattr_setpgroup(&attributes, 0));
  error(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP));

  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  std::vector<char*> variables = ChildEnvironment();
  pid_t pid = -1;
  if (error.get() == 0) {
    error(posix_spawn(&pid, command[0].c_str(), &actions, &attributes, arguments.data(), variables.data()));
  }
  if (error.get() != 0) return absl::ErrnoToStatus(error.get(), absl::StrCat("cannot start ", command[0]));
  std::move(close_read_end).Cancel();
  return std::unique_ptr<ServiceProcess>(new ServiceProcess(pid, pipe_ends[0]));
}

ServiceProcess::~ServiceProcess() {
  if (!wait_status_.has_value()) {
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  if (output_ >= 0) close(output_);
}

bool ServiceProcess::Poll() {
  ReadOutput();
  if (wait_status_.has_value()) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return true;
  wait_status_ = status;
  ReadOutput();
  return false;
}

void ServiceProcess::ReadOutput() {
  char buffer[1024];
  while (output_ >= 0) {
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
      close(output_);
      output_ = -1;
      return;
    }
    for (const char c : absl::string_view(buffer, static_cast<size_t>(count))) {
      if (c != '\n') {
        if (partial_line_.size() < kLineBytesMax) partial_line_.push_back(c);
        continue;
      }
      if (!announced_.has_value()) announced_ = ParseAnnouncement(partial_line_);
      partial_line_.clear();
    }
  }
}

int ServiceProcess::exit_code() const {
  const int status = wait_status_.value_or(0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string ServiceProcess::DescribeEnd() const {
  const int status = wait_status_.value_or(0);
  if (WIFSIGNALED(status)) {
    return absl::StrCat("was killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(status));
}

void ServiceProcess::Signal(int signal_number) {
  if (!wait_status_.has_value()) kill(pid_, signal_number);
}

void StopGently(ServiceProcess& process) {
  process.Signal(SIGTERM);
  const absl::Time deadline = absl::Now() + kStopGrace;
  while (process.Poll() && absl::Now() < deadline) absl::SleepFor(kStopPoll);
}

std::filesystem::path ProgramDirectory(const std::string& given) {
  if (!given.empty()) return given;
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

std::string LastLines(const std::string& file, int lines) {
  constexpr std::streamoff kTailBytes = 16384;
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  if (!stream) return "";
  const std::streamoff size = stream.tellg();
  stream.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  std::string text(std::istreambuf_iterator<char>(stream), {});
  std::vector<std::string> all = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  const size_t keep = std::min(all.size(), static_cast<size_t>(lines));
  std::string tail;
  for (size_t i = all.size() - keep; i < all.size(); ++i) absl::StrAppend(&tail, tail.empty() ? "" : "\n", all[i]);
  return tail;
}

}  // namespace millrace
