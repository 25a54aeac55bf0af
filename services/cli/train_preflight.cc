#include "services/cli/train_preflight.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/address.h"
#include "common/signing.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kDefaultWorkers = 2;
constexpr uint32_t kDefaultShards = 1;
constexpr uint32_t kDefaultDataReplicas = 1;

// Where the dataset is looked for when nobody says: where deploy/fetch_data.sh or Debian's package put it.
std::string DefaultDataDir(const std::string& dataset) {
  const char* const home = std::getenv("HOME");
  const fs::path cache = fs::path(home == nullptr ? "/" : home) / ".cache/millrace" / dataset;
  const fs::path packaged = fs::path("/usr/share/datasets") / dataset;
  std::error_code error;
  return (!fs::exists(cache, error) && fs::exists(packaged, error) ? packaged : cache).string();
}

// Catches the usual mistakes before anything is started or written; the data service judges the files themselves.
absl::Status CheckDataDir(const std::string& data_dir) {
  std::error_code error;
  for (fs::directory_iterator entry(data_dir, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    for (const char* const begin : {"train-images", "emnist-", "data_batch_"}) {
      if (absl::StartsWith(name, begin)) return absl::OkStatus();
    }
  }
  return absl::NotFoundError(
      absl::StrCat("no dataset in ", data_dir, error ? " (" + error.message() + ")" : "",
                   ": run deploy/fetch_data.sh, or name a directory of IDX or CIFAR-10 files by --data-dir"));
}

// Names no directory: the data service draws the samples.
bool IsSynthetic(const std::string& data_dir) {
  return data_dir == "synthetic" || absl::StartsWith(data_dir, "synthetic:");
}

// A run that is resumed keeps what it is not told otherwise: other samples would be another dataset.
std::vector<std::string> DataFlags(const TrainOptions& options, const std::optional<ClusterRecord>& previous) {
  std::vector<std::string> flags;
  if (previous.has_value()) flags = previous->data_flags;
  const auto set = [&flags](const char* name, const std::optional<std::string>& value) {
    if (!value.has_value()) return;
    const auto found = std::ranges::find(flags, name);
    if (found != flags.end()) flags.erase(found, found + 2);
    flags.insert(flags.end(), {name, *value});
  };
  set("--clean", options.clean);
  set("--transpose", options.transpose);
  return flags;
}

absl::Status CheckJsonPath(const std::string& json) {
  if (json.empty()) return absl::OkStatus();
  std::error_code error;
  const fs::path parent = fs::absolute(json).parent_path();
  if (fs::is_directory(parent, error) && access(parent.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("--json: cannot write to ", parent.string()));
}

// Finds a port in use before anything is trained in vain; the model service, which takes a second to load, binds it
// anew.
absl::Status CheckServingAddresses(const TrainOptions& options) {
  if (!options.serve) return absl::OkStatus();
  for (const std::string& listen : {options.serve_listen, options.serve_http_listen}) {
    MILLRACE_ASSIGN_OR_RETURN(const Address address, ParseAddress(listen));
    MILLRACE_RETURN_IF_ERROR(ListeningSocket::Bind(address).status());
  }
  return absl::OkStatus();
}

std::string NewOutputPath(const JobFlags& job) {
  return absl::StrCat("out/", job.model_name.value_or("mnist"), "-",
                      absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone()));
}

// A file system that refuses a path is a wrong path; a full one is bad luck.
absl::Status AsBadPath(const absl::Status& status) {
  if (status.ok() || absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) return status;
  return absl::FailedPreconditionError(status.message());
}

}  // namespace

absl::StatusOr<TrainSetup> PrepareTrain(const TrainOptions& options) {
  const std::string out = options.out.empty() ? NewOutputPath(options.job) : options.out;
  std::optional<ClusterRecord> previous;
  if (options.resume) {
    if (absl::StatusOr<ClusterRecord> record = ReadClusterRecord(out); record.ok()) {
      previous = *std::move(record);
    } else if (!absl::IsNotFound(record.status())) {
      return record.status();
    }
  }
  std::string data_dir;
  if (options.data_dir.has_value()) {
    data_dir = *options.data_dir;
  } else if (previous.has_value() && !options.dataset.has_value()) {
    data_dir = previous->data_dir;
  } else {
    data_dir = DefaultDataDir(options.dataset.value_or("mnist"));
  }
  if (!IsSynthetic(data_dir)) {
    data_dir = fs::absolute(data_dir).string();
    MILLRACE_RETURN_IF_ERROR(CheckDataDir(data_dir));
  }
  MILLRACE_RETURN_IF_ERROR(CheckJsonPath(options.json));
  if (!options.sign_key.empty()) MILLRACE_RETURN_IF_ERROR(SigningKey::Read(options.sign_key).status());
  MILLRACE_RETURN_IF_ERROR(CheckServingAddresses(options));
  const uint32_t workers = options.workers.value_or(previous.has_value() ? previous->workers : kDefaultWorkers);
  if (options.backup_workers > 0 && options.backup_workers >= workers) {
    return absl::InvalidArgumentError(absl::StrCat("--backup-workers ", options.backup_workers, " leaves none of ",
                                                   workers, " workers to compute a share"));
  }
  absl::StatusOr<OutputDirectory> output = OutputDirectory::Open(out, options.log_dir, options.resume);
  MILLRACE_RETURN_IF_ERROR(AsBadPath(output.status()));
  const uint32_t shards = options.shards.value_or(previous.has_value() ? previous->shards : kDefaultShards);
  const uint32_t data_replicas =
      options.data_replicas.value_or(previous.has_value() ? previous->data_replicas : kDefaultDataReplicas);
  return TrainSetup{.data_dir = std::move(data_dir),
                    .data_flags = DataFlags(options, previous),
                    .workers = workers,
                    .shards = shards,
                    .data_replicas = data_replicas,
                    .previous = std::move(previous),
                    .output = *std::move(output)};
}

}  // namespace millrace
