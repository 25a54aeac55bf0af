#include "services/cli/output_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "google/protobuf/text_format.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSmallFileBytesMax = 1 << 20;

// Checkpoints and model versions are directories named after their step. What else lies beside them (a lock, Triton's
// config) comes before the first one is written.
bool HoldsVersions(const fs::path& directory) { return !NumberedEntries(directory).empty(); }

absl::Status WriteJobFile(const fs::path& file, const v1::JobSpec& spec) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(spec, &text);
  return WriteFileAtomically(file, text);
}

}  // namespace

absl::Status WriteClusterRecord(const fs::path& out, const ClusterRecord& record) {
  const nlohmann::ordered_json json = {
      {"process_id", record.process_id}, {"data_dir", record.data_dir},           {"workers", record.workers},
      {"shards", record.shards},         {"coordinator", record.coordinator},     {"model", record.model},
      {"data_flags", record.data_flags}, {"data_replicas", record.data_replicas},
  };
  return WriteFileAtomically(out / "cluster.json", json.dump(2) + "\n");
}

absl::StatusOr<ClusterRecord> ReadClusterRecord(const fs::path& out) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(out / "cluster.json", kSmallFileBytesMax));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  ClusterRecord record;
  try {
    record.process_id = json.at("process_id").get<int64_t>();
    record.data_dir = json.at("data_dir").get<std::string>();
    record.workers = json.at("workers").get<uint32_t>();
    record.shards = json.at("shards").get<uint32_t>();
    record.data_replicas = json.value("data_replicas", 1u);  // earlier versions had one
    record.coordinator = json.at("coordinator").get<std::string>();
    record.model = json.at("model").get<std::string>();
    record.data_flags = json.value("data_flags", std::vector<std::string>());  // earlier versions had none
    if (record.data_flags.size() % 2 != 0) {
      return absl::DataLossError(
          absl::StrCat((out / "cluster.json").string(), " is damaged: a data flag has no value"));
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat((out / "cluster.json").string(), " is damaged: ", error.what()));
  }
  return record;
}

bool HoldsResults(const fs::path& path) {
  if (HoldsVersions(path / "checkpoints")) return true;
  std::error_code error;
  for (fs::directory_iterator model(path / "models", error), end; !error && model != end; model.increment(error)) {
    if (HoldsVersions(model->path())) return true;
  }
  return false;
}

absl::StatusOr<OutputDirectory> OutputDirectory::Open(const fs::path& path, const std::string& log_dir, bool resume) {
  const fs::path out = fs::absolute(path).lexically_normal();
  if (!resume && HoldsResults(out)) {
    return absl::FailedPreconditionError(
        absl::StrCat(out.string(), " holds an earlier run: go on with it by --resume, or choose another --out"));
  }
  const fs::path logs = log_dir.empty() ? out / "logs" : fs::absolute(log_dir);
  for (const fs::path& directory : {out, out / "models", logs}) MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory));

  const fs::path lock_file = out / ".lock";
  const int lock = open(lock_file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write to ", out.string()));
  OutputDirectory directory(out, logs, lock);
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    return absl::UnavailableError(absl::StrCat(out.string(), " is in use by another millrace train"));
  }
  return directory;
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : path_(std::move(other.path_)), log_dir_(std::move(other.log_dir_)), lock_(std::exchange(other.lock_, -1)) {}

OutputDirectory::~OutputDirectory() {
  if (lock_ >= 0) close(lock_);
}

absl::StatusOr<v1::JobSpec> OutputDirectory::ReadJob() const {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(job_file(), kSmallFileBytesMax));
  v1::JobSpec spec;
  if (!google::protobuf::TextFormat::ParseFromString(text, &spec)) {
    return absl::DataLossError(absl::StrCat(job_file().string(), " is no job: it does not parse"));
  }
  return spec;
}

absl::Status OutputDirectory::WriteJob(const v1::JobSpec& spec) const { return WriteJobFile(job_file(), spec); }

absl::Status OutputDirectory::ProposeJob(const v1::JobSpec& spec) const {
  return WriteJobFile(proposed_job_file(), spec);
}

absl::Status OutputDirectory::AcceptJob() const {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(proposed_job_file(), kSmallFileBytesMax));
  return WriteFileAtomically(job_file(), text);
}

void OutputDirectory::WithdrawJob() const {
  std::error_code ignored;  // there may be none
  fs::remove(proposed_job_file(), ignored);
}

}  // namespace millrace
