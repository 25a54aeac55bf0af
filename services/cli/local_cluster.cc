#include "services/cli/local_cluster.h"

#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kTemporaryPathBytesMax = 60;  // leaves room for the part's name in a socket's path
constexpr char kAnyLocalPort[] = "127.0.0.1:0";
constexpr char kDrainGraceMs[] = "2000";
constexpr char kRepositoryPollMs[] = "100";

}  // namespace

absl::StatusOr<PrivateDirectory> PrivateDirectory::Create() {
  std::error_code error;
  fs::path parent = fs::temp_directory_path(error);
  if (error || parent.native().size() > kTemporaryPathBytesMax) parent = "/tmp";
  std::string path = (parent / "millrace-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make a directory for sockets in ", parent.string()));
  }
  return PrivateDirectory(path);
}

PrivateDirectory::PrivateDirectory(PrivateDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}

PrivateDirectory::~PrivateDirectory() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

absl::StatusOr<LocalCluster> LocalCluster::Create(const TrainOptions& options, const OutputDirectory& output,
                                                  const fs::path& sockets, uint32_t data_replicas) {
  fs::path bin_dir = ProgramDirectory(options.bin_dir);
  for (const char* program : {"millrace-data", "millrace-ps", "millrace-worker", "millrace-model"}) {
    if (access((bin_dir / program).c_str(), X_OK) != 0) {
      return absl::NotFoundError(absl::StrCat("there is no program ", (bin_dir / program).string()));
    }
  }
  return LocalCluster(options, output, std::move(bin_dir), sockets, data_replicas);
}

std::string LocalCluster::DataName(uint32_t replica) { return replica == 0 ? "data" : absl::StrCat("data-", replica); }
std::string LocalCluster::ShardName(uint32_t shard) { return absl::StrCat("parameter-server-", shard); }
std::string LocalCluster::WorkerName(uint32_t worker) { return absl::StrCat("worker-", worker); }

std::vector<std::string> LocalCluster::data_addresses() const {
  std::vector<std::string> addresses;
  for (uint32_t replica = 0; replica < data_replicas_; ++replica) addresses.push_back(Socket(DataName(replica)));
  return addresses;
}

Supervisor::Part LocalCluster::MakePart(const std::string& name, const std::string& program,
                                        Supervisor::Replace replace, std::vector<std::string> flags) const {
  Supervisor::Part part{
      .name = name, .command = {(bin_dir_ / program).string()}, .log_file = output_.LogFile(name), .replace = replace};
  part.command.insert(part.command.end(), flags.begin(), flags.end());
  part.command.insert(part.command.end(), {"--log-level", options_.log_level, "--drain-grace-ms", kDrainGraceMs});
  return part;
}

Supervisor::Part LocalCluster::Data(uint32_t replica, const std::string& data_dir,
                                    const std::vector<std::string>& flags) const {
  const std::string name = DataName(replica);
  std::vector<std::string> all = {"--data-dir", data_dir, "--listen", Socket(name), "--http-listen", kAnyLocalPort};
  all.insert(all.end(), flags.begin(), flags.end());
  Supervisor::Part part = MakePart(name, "millrace-data", Supervisor::Replace::kOnceReady, std::move(all));
  part.group = "data";
  return part;
}

Supervisor::Part LocalCluster::Shard(uint32_t shard, uint32_t shards) const {
  std::vector<std::string> flags = {"--shard",  absl::StrCat(shard),      "--num-shards",  absl::StrCat(shards),
                                    "--listen", Socket(ShardName(shard)), "--http-listen", kAnyLocalPort};
  if (shard == 0) {
    flags.insert(flags.end(),
                 {"--job", output_.proposed_job_file().string(), "--data", absl::StrJoin(data_addresses(), ","),
                  "--output", output_.path().string(), "--keep-checkpoints", absl::StrCat(options_.keep_checkpoints),
                  "--backup-workers", absl::StrCat(options_.backup_workers)});
    if (!options_.sign_key.empty()) flags.insert(flags.end(), {"--sign-key", options_.sign_key});
    if (options_.resume) flags.emplace_back("--resume");
  } else {
    flags.insert(flags.end(), {"--coordinator", coordinator_address()});
  }
  Supervisor::Part part = MakePart(ShardName(shard), "millrace-ps", Supervisor::Replace::kOnceReady, std::move(flags));
  if (shard == 0 && !options_.resume) part.flags_when_replaced = {"--resume"};
  return part;
}

Supervisor::Part LocalCluster::Worker(uint32_t worker) const {
  return MakePart(WorkerName(worker), "millrace-worker", Supervisor::Replace::kAlways,
                  {"--coordinator", coordinator_address(), "--name", WorkerName(worker), "--threads",
                   absl::StrCat(options_.threads), "--device", options_.device, "--http-listen", kAnyLocalPort});
}

Supervisor::Part LocalCluster::Model() const {
  return MakePart(kModel, "millrace-model", Supervisor::Replace::kOnceReady,
                  {"--repository", output_.models().string(), "--poll-interval-ms", kRepositoryPollMs,
                   "--drain-seconds", "0",  // no load balancer needs to be told first
                   "--listen", options_.serve ? options_.serve_listen : Socket(kModel), "--http-listen",
                   options_.serve ? options_.serve_http_listen : std::string(kAnyLocalPort)});
}

}  // namespace millrace
