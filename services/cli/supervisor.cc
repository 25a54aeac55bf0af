#include "services/cli/supervisor.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/status_macros.h"
#include "common/text_format.h"

namespace millrace {
namespace {

constexpr absl::Duration kStopPollInterval = absl::Milliseconds(20);
constexpr absl::Duration kRestartAfterLeaving = absl::Seconds(2);
constexpr int kLogLinesShown = 5;

}  // namespace

Supervisor::Supervisor(const Clock& clock, ShutdownSignals& signals, Notice notice)
    : clock_(clock), signals_(signals), notice_(std::move(notice)) {}

Supervisor::~Supervisor() = default;

absl::Status Supervisor::Start(Part part) {
  std::string name = part.name;
  Running& running = parts_[std::move(name)];
  running.part = std::move(part);
  return Launch(running);
}

absl::Status Supervisor::Launch(Running& running) {
  std::vector<std::string> command = running.part.command;
  if (running.was_ready) {
    const std::vector<std::string>& more = running.part.flags_when_replaced;
    command.insert(command.end(), more.begin(), more.end());
  }
  command.push_back("--parent-pid");
  command.push_back(absl::StrCat(getpid()));
  running.policy.OnStart(clock_.Now());
  MILLRACE_ASSIGN_OR_RETURN(running.process, ServiceProcess::Start(command, running.part.log_file));
  return absl::OkStatus();
}

absl::Status Supervisor::Poll(absl::Duration timeout) {
  if (signals_.WaitFor(timeout) >= 0) return absl::CancelledError("interrupted");
  for (auto& [name, running] : parts_) {
    if (running.process != nullptr) {
      const bool runs = running.process->Poll();
      running.was_ready |= running.process->announced().has_value();
      if (!runs) MILLRACE_RETURN_IF_ERROR(OnDeath(running));
    } else if (clock_.Now() >= running.restart_at) {
      MILLRACE_RETURN_IF_ERROR(Launch(running));
    }
  }
  return absl::OkStatus();
}

absl::Status Supervisor::OnDeath(Running& running) {
  const Part& part = running.part;
  const int exit_code = running.process->exit_code();
  const std::string death =
      absl::StrCat(part.name, " (process ", running.process->pid(), ") ", running.process->DescribeEnd());
  running.process.reset();

  if (exit_code == kExitBadConfiguration || exit_code == kExitUsage) {
    return GiveUp(running, absl::FailedPreconditionError(
                               absl::StrCat(part.name, ": ", MessageOfLogLine(LastLines(part.log_file, 1)))));
  }
  if (part.replace == Replace::kNever || (part.replace == Replace::kOnceReady && !running.was_ready)) {
    const bool explained = exit_code == kExitFailure;  // one that was killed had no time to say why
    return absl::AbortedError(explained ? absl::StrCat(death, ": ", MessageOfLogLine(LastLines(part.log_file, 1)))
                                        : death);
  }
  if (exit_code == kExitOk && part.replace == Replace::kAlways) {
    // Workers leave like this when the job is over, which their parent learns a little later than they do.
    running.restart_at = clock_.Now() + kRestartAfterLeaving;
    return absl::OkStatus();
  }
  const std::optional<absl::Time> restart_at = running.policy.OnDeath(clock_.Now());
  if (!restart_at.has_value()) {
    return GiveUp(running,
                  absl::AbortedError(absl::StrCat(death, ", soon after its start, ", running.policy.early_deaths(),
                                                  " times in a row. The end of ", part.log_file, ":\n",
                                                  LastLines(part.log_file, kLogLinesShown))));
  }
  running.restart_at = *restart_at;
  notice_(absl::StrCat(death, "; starting it again"));
  return absl::OkStatus();
}

absl::Status Supervisor::GiveUp(Running& running, const absl::Status& why) {
  const bool replaceable = std::ranges::any_of(parts_, [&](const auto& entry) {
    const Running& other = entry.second;
    const bool alive = other.process != nullptr || other.restart_at != absl::InfiniteFuture();
    return &other != &running && other.part.group == running.part.group && alive;
  });
  if (running.part.group.empty() || !running.was_ready || !replaceable) return why;
  running.restart_at = absl::InfiniteFuture();
  notice_(
      absl::StrCat(std::string(why.message()), "\n", running.part.name, " is not started again: others do its work"));
  return absl::OkStatus();
}

const AnnouncedAddresses* Supervisor::announced(const std::string& name) const {
  const auto found = parts_.find(name);
  if (found == parts_.end() || found->second.process == nullptr) return nullptr;
  const auto& addresses = found->second.process->announced();
  return addresses.has_value() ? &*addresses : nullptr;
}

std::vector<std::string> Supervisor::names() const {
  std::vector<std::string> names;
  for (const auto& [name, running] : parts_) names.push_back(name);
  return names;
}

void Supervisor::Stop(const std::vector<std::string>& names, absl::Duration grace) {
  std::vector<std::unique_ptr<ServiceProcess>> leaving;
  for (const std::string& name : names) {
    const auto found = parts_.find(name);
    if (found == parts_.end()) continue;
    if (found->second.process != nullptr) leaving.push_back(std::move(found->second.process));
    parts_.erase(found);
  }
  for (auto& process : leaving) process->Signal(SIGTERM);
  const absl::Time deadline = clock_.Now() + grace;
  bool killed = false;
  while (true) {
    std::erase_if(leaving, [](const auto& process) { return !process->Poll(); });
    if (leaving.empty()) return;
    const bool signalled = signals_.WaitFor(kStopPollInterval) >= 0;
    if (!killed && (signalled || clock_.Now() >= deadline)) {
      killed = true;
      for (auto& process : leaving) process->Signal(SIGKILL);
    }
  }
}

}  // namespace millrace
