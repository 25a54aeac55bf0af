#include "tests/integration/virtual_network.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "tests/testing/child_process.h"

namespace millrace {
namespace {

constexpr char kOwnNamespace[] = "/proc/thread-self/ns/net";

// Runs iproute2's `ip` in the calling thread's network.
absl::Status Ip(const std::string& arguments) {
  std::vector<std::string> command = {"/bin/ip"};
  for (const absl::string_view word : absl::StrSplit(arguments, ' ')) command.emplace_back(word);
  try {
    ChildProcess ip(command);
    if (ip.Wait() == 0) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("ip ", arguments, ": ", ip.all_of_stderr()));
  } catch (const std::system_error& error) {
    return absl::UnavailableError(absl::StrCat("iproute2's ip: ", error.what()));
  }
}

}  // namespace

// The network namespace that the calling thread is in, kept alive.
class VirtualNetwork::Namespace {
 public:
  Namespace() : fd_(open(kOwnNamespace, O_RDONLY | O_CLOEXEC)) {}
  ~Namespace() { close(fd_); }

  void Enter() const {
    if (setns(fd_, CLONE_NEWNET) != 0) throw std::system_error(errno, std::generic_category(), "setns");
  }
  // As `ip` takes it.
  std::string path() const { return absl::StrCat("/proc/", getpid(), "/fd/", fd_); }

 private:
  const int fd_;
};

VirtualNetwork::VirtualNetwork() : outside_(std::make_unique<Namespace>()) {}

VirtualNetwork::~VirtualNetwork() { outside_->Enter(); }

absl::StatusOr<std::unique_ptr<VirtualNetwork>> VirtualNetwork::Create(int hosts) {
  std::unique_ptr<VirtualNetwork> network(new VirtualNetwork);
  MILLRACE_RETURN_IF_ERROR(network->Build(hosts));
  return network;
}

absl::Status VirtualNetwork::Build(int hosts) {
  const auto new_namespace = []() -> absl::StatusOr<std::unique_ptr<Namespace>> {
    if (unshare(CLONE_NEWNET) != 0) {
      return absl::UnavailableError(absl::ErrnoToStatus(errno, "no network namespace can be made").message());
    }
    return std::make_unique<Namespace>();
  };
  MILLRACE_ASSIGN_OR_RETURN(switch_, new_namespace());
  MILLRACE_RETURN_IF_ERROR(Ip("link add switch type bridge"));
  MILLRACE_RETURN_IF_ERROR(Ip("link set switch up"));
  for (int host = 0; host < hosts; ++host) {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<Namespace> inside, new_namespace());
    hosts_.push_back(std::move(inside));
    switch_->Enter();
    const std::string port = absl::StrCat("port", host);
    MILLRACE_RETURN_IF_ERROR(
        Ip(absl::StrCat("link add ", port, " type veth peer name eth0 netns ", hosts_.back()->path())));
    MILLRACE_RETURN_IF_ERROR(Ip(absl::StrCat("link set ", port, " master switch up")));
    Enter(host);
    MILLRACE_RETURN_IF_ERROR(Ip("link set lo up"));
    MILLRACE_RETURN_IF_ERROR(Ip(absl::StrCat("addr add ", AddressOf(host), "/24 dev eth0")));
    MILLRACE_RETURN_IF_ERROR(Ip("link set eth0 up"));
  }
  return absl::OkStatus();
}

std::string VirtualNetwork::AddressOf(int host) { return absl::StrCat("10.83.0.", 1 + host); }

void VirtualNetwork::Enter(int host) {
  hosts_.at(host)->Enter();
  current_ = host;
}

void VirtualNetwork::Cut(int host, int other) { Route(host, "add", other); }

void VirtualNetwork::Mend(int host, int other) { Route(host, "del", other); }

// To a host that is behind a black hole the kernel neither sends, nor does it take what claims to come from there.
void VirtualNetwork::Route(int host, const char* change, int other) {
  const int before = current_;
  Enter(host);
  const absl::Status done = Ip(absl::StrCat("route ", change, " blackhole ", AddressOf(other)));
  Enter(before);
  if (!done.ok()) throw std::runtime_error(done.ToString());
}

}  // namespace millrace
