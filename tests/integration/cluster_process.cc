#include "tests/integration/cluster_process.h"

#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "absl/time/clock.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "gtest/gtest.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/cli/output_directory.h"
#include "tests/testing/eventually.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPollInterval = absl::Milliseconds(10);
constexpr absl::Duration kWaitMax = absl::Minutes(3);

std::string ReadAll(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

std::vector<std::string> TrainArguments(const fs::path& out, const fs::path& data_dir,
                                        const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {"train",      "--data-dir", data_dir.string(),     "--out",
                                        out.string(), "--json",     out.string() + ".json"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

}  // namespace

Program::Program(const std::string& name, std::vector<std::string> arguments, const fs::path& stderr_file)
    : stderr_file_(stderr_file) {
  std::vector<std::string> command = {(fs::path(MILLRACE_BIN_DIR) / name).string()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  absl::StatusOr<std::unique_ptr<ServiceProcess>> process = ServiceProcess::Start(command, stderr_file.string());
  if (!process.ok()) throw std::runtime_error(process.status().ToString());
  process_ = *std::move(process);
}

int Program::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (process_->Poll()) {
    if (absl::Now() > deadline) throw std::runtime_error("still running; its stderr:\n" + Errors());
    absl::SleepFor(kPollInterval);
  }
  return process_->exit_code();
}

void Program::WaitForError(const std::string& text) {
  const absl::Time deadline = absl::Now() + kWaitMax;
  while (Errors().find(text) == std::string::npos) {
    if (!Runs() || absl::Now() > deadline) throw std::runtime_error("never said '" + text + "' but:\n" + Errors());
    absl::SleepFor(kPollInterval);
  }
}

const AnnouncedAddresses& Program::WaitForAddresses() {
  if (Eventually([&] { return !Runs() || process_->announced().has_value(); }) && process_->announced().has_value()) {
    return *process_->announced();
  }
  throw std::runtime_error("the program says no address; stderr:\n" + Errors());
}

std::string Program::Errors() const { return ReadAll(stderr_file_); }

std::vector<pid_t> Program::Children(const std::string& name) const {
  const std::string pid = std::to_string(process_->pid());
  std::vector<pid_t> children;
  std::istringstream all(ReadAll(fs::path("/proc") / pid / "task" / pid / "children"));
  for (pid_t child; all >> child;) {
    const std::string command = ReadAll(fs::path("/proc") / std::to_string(child) / "cmdline");
    if (fs::path(command.substr(0, command.find('\0'))).filename() == name) children.push_back(child);
  }
  return children;
}

ClusterProcess::ClusterProcess(const fs::path& out, const fs::path& data_dir, std::vector<std::string> flags)
    : out_(out), program_("millrace", TrainArguments(out, data_dir, flags), out.string() + ".stderr") {}

nlohmann::json ClusterProcess::Result() const {
  const std::string text = ReadAll(out_.string() + ".json");
  if (text.empty()) throw std::runtime_error("no result; stderr:\n" + program_.Errors());
  return nlohmann::json::parse(text);
}

std::optional<v1::JobStatus> ClusterProcess::Status() const {
  const absl::StatusOr<ClusterRecord> record = ReadClusterRecord(out_);
  if (!record.ok() || record->coordinator.empty()) return std::nullopt;
  const auto stub = v1::Coordinator::NewStub(MakeChannel(record->coordinator));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(2));
  v1::JobStatus status;
  if (!stub->GetJobStatus(&context, {}, &status).ok()) return std::nullopt;
  return status;
}

v1::JobStatus ClusterProcess::WaitUntil(const std::function<bool(const v1::JobStatus&)>& condition) {
  const absl::Time deadline = absl::Now() + kWaitMax;
  while (program_.Runs() && absl::Now() < deadline) {
    if (const std::optional<v1::JobStatus> status = Status(); status.has_value() && condition(*status)) return *status;
    absl::SleepFor(kPollInterval);
  }
  throw std::runtime_error("the job never got there; stderr:\n" + program_.Errors());
}

nlohmann::json Finish(ClusterProcess& run) {
  EXPECT_EQ(run.Wait(), 0) << run.program().Errors();
  return run.Result();
}

std::string NewestDigest(const fs::path& repository) {
  const std::vector<uint64_t> numbers = NumberedEntries(repository / "mnist");
  if (numbers.empty()) return "";
  std::ifstream manifest(repository / "mnist" / std::to_string(numbers.front()) / "manifest.json");
  return nlohmann::json::parse(manifest)["weights_sha256"];
}

}  // namespace millrace
