#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

// What other commands, and a resumed run, need to know of a run: <out>/cluster.json.
struct ClusterRecord {
  int64_t process_id = 0;
  std::string data_dir{};
  uint32_t workers = 0;
  uint32_t shards = 0;
  uint32_t data_replicas = 1;
  std::string coordinator{};              // gRPC address; empty when nothing runs
  std::string model{};                    // gRPC address of the model service; empty when none runs
  std::vector<std::string> data_flags{};  // of the data service, besides its directory and addresses
};

absl::Status WriteClusterRecord(const std::filesystem::path& out, const ClusterRecord& record);
// NOT_FOUND if `out` is no output directory of a run.
absl::StatusOr<ClusterRecord> ReadClusterRecord(const std::filesystem::path& out);

// The directory of one training run, held by one `millrace train` at a time (a lock that ends with the process).
//   job.textproto   the job            cluster.json   see ClusterRecord
//   job.proposed.textproto   the job of the parameter servers, which may refuse it
//   checkpoints/    training state     models/<name>/<version>/   what is served     logs/
class OutputDirectory {
 public:
  // `path` must be new or empty of results, or `resume` must be set. Creates what is missing.
  // FAILED_PRECONDITION: there are results and `resume` is not set; UNAVAILABLE: another run holds it; else the file
  // system's error, which names the path.
  static absl::StatusOr<OutputDirectory> Open(const std::filesystem::path& path, const std::string& log_dir,
                                              bool resume);
  OutputDirectory(OutputDirectory&& other) noexcept;
  ~OutputDirectory();

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path models() const { return path_ / "models"; }
  std::filesystem::path proposed_job_file() const { return path_ / "job.proposed.textproto"; }
  std::string LogFile(const std::string& part) const { return (log_dir_ / (part + ".log")).string(); }

  // NOT_FOUND if no job was ever started here.
  absl::StatusOr<v1::JobSpec> ReadJob() const;
  absl::Status WriteJob(const v1::JobSpec& spec) const;
  // Writes a job beside the one that is there, for the parameter servers to read whenever one is started. AcceptJob
  // makes it the job that is there; WithdrawJob removes it.
  absl::Status ProposeJob(const v1::JobSpec& spec) const;
  absl::Status AcceptJob() const;
  void WithdrawJob() const;

 private:
  OutputDirectory(std::filesystem::path path, std::filesystem::path log_dir, int lock)
      : path_(std::move(path)), log_dir_(std::move(log_dir)), lock_(lock) {}

  std::filesystem::path job_file() const { return path_ / "job.textproto"; }

  std::filesystem::path path_;
  std::filesystem::path log_dir_;
  int lock_;
};

// True if `path` holds checkpoints or model versions of an earlier run. A run that ended before its first one, on a
// full disk say, left no results.
bool HoldsResults(const std::filesystem::path& path);

}  // namespace millrace
