#include "services/cli/fault_injector.h"

#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "services/cli/local_cluster.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

std::string ReadAll(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// What LocalCluster calls the process with this command line; empty if nothing.
std::string PartOf(const std::vector<std::string>& command) {
  const std::string program = fs::path(command[0]).filename();
  const auto flag = [&](absl::string_view name) -> std::string {
    for (size_t i = 1; i + 1 < command.size(); ++i) {
      if (command[i] == name) return command[i + 1];
    }
    return "";
  };
  if (program == "millrace-data") return fs::path(flag("--listen")).filename();  // its socket has its name
  if (program == "millrace-ps") return absl::StrCat("parameter-server-", flag("--shard"));
  if (program == "millrace-worker") return flag("--name");
  return "";
}

}  // namespace

std::optional<pid_t> FindPart(pid_t parent, const std::string& part) {
  const std::string pid = absl::StrCat(parent);
  std::istringstream children(ReadAll(fs::path("/proc") / pid / "task" / pid / "children"));
  for (pid_t child; children >> child;) {
    const std::string command = ReadAll(fs::path("/proc") / absl::StrCat(child) / "cmdline");
    const std::vector<std::string> words = absl::StrSplit(command, '\0');
    if (PartOf(words) == part) return child;
  }
  return std::nullopt;
}

FaultInjector::FaultInjector(const Clock& clock, pid_t train, fs::path out, fs::path bin_dir,
                             std::vector<Fault> schedule)
    : clock_(clock),
      train_(train),
      out_(std::move(out)),
      bin_dir_(std::move(bin_dir)),
      schedule_(std::move(schedule)),
      status_(out_) {}

FaultInjector::~FaultInjector() {
  for (const auto& [pid, until] : stopped_) kill(pid, SIGCONT);
}

absl::Status FaultInjector::Poll() {
  const absl::Time now = clock_.Now();
  std::erase_if(stopped_, [&](const auto& stopped) {
    if (now < stopped.second) return false;
    kill(stopped.first, SIGCONT);
    return true;
  });
  std::erase_if(guests_, [](const auto& guest) { return !guest.second->Poll(); });

  const bool settled = results_.empty() || results_.back().until_step.has_value();
  if (settled && results_.size() == schedule_.size()) return absl::OkStatus();
  const std::optional<uint64_t> version = Version();
  if (!version.has_value()) return absl::OkStatus();
  if (!settled) {
    if (*version > results_.back().version) results_.back().until_step = clock_.Now() - injected_;
    return absl::OkStatus();
  }
  const Fault& fault = schedule_[results_.size()];
  if (*version < fault.step) return absl::OkStatus();
  if (fault.kind == Fault::Kind::kJoin) {
    MILLRACE_RETURN_IF_ERROR(Join(fault));
  } else if (!Inject(fault, now)) {
    return absl::OkStatus();  // the part is still on its way back from the fault before
  }
  injected_ = now;
  results_.push_back({.fault = fault, .version = *version, .until_step = std::nullopt});
  return absl::OkStatus();
}

bool FaultInjector::Inject(const Fault& fault, absl::Time now) {
  if (fault.kind == Fault::Kind::kLeave) {
    if (const auto guest = guests_.find(fault.part); guest != guests_.end()) guest->second->Signal(SIGTERM);
    return true;
  }
  const std::optional<pid_t> pid = FindPart(train_, fault.part);
  if (!pid.has_value()) return false;
  switch (fault.kind) {
    case Fault::Kind::kStop:
      stopped_[*pid] = now + fault.pause;
      return kill(*pid, SIGSTOP) == 0;
    case Fault::Kind::kRestart:
      return kill(*pid, SIGTERM) == 0;
    default:
      return kill(*pid, SIGKILL) == 0;
  }
}

absl::Status FaultInjector::Join(const Fault& fault) {
  const std::vector<std::string> command = {(bin_dir_ / "millrace-worker").string(),
                                            "--coordinator",
                                            status_.coordinator_address(),
                                            "--name",
                                            fault.part,
                                            "--http-listen",
                                            "127.0.0.1:0",
                                            "--parent-pid",
                                            absl::StrCat(getpid())};
  MILLRACE_ASSIGN_OR_RETURN(guests_[fault.part],
                            ServiceProcess::Start(command, (out_ / "logs" / (fault.part + ".log")).string()));
  return absl::OkStatus();
}

std::optional<uint64_t> FaultInjector::Version() {
  const std::optional<v1::JobStatus> status = status_.Ask();
  if (!status.has_value() || status->state() == v1::JobStatus::STATE_STARTING) return std::nullopt;
  return status->version();
}

}  // namespace millrace
