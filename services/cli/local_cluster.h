#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/output_directory.h"
#include "services/cli/supervisor.h"
#include "services/cli/train_options.h"

namespace millrace {

// A new directory that only this user can enter, for the cluster's Unix sockets; removed with the object. Its path is
// short, since a socket's path has at most 107 bytes.
class PrivateDirectory {
 public:
  static absl::StatusOr<PrivateDirectory> Create();
  PrivateDirectory(PrivateDirectory&& other) noexcept;
  ~PrivateDirectory();
  const std::filesystem::path& path() const { return path_; }

 private:
  explicit PrivateDirectory(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

// Who the processes of a local cluster are and how each is started: names, programs, flags and addresses. Decides
// nothing else and starts nothing.
class LocalCluster {
 public:
  // All must outlive the object. NOT_FOUND, naming it, if a program of the cluster is not in `options.bin_dir`
  // (default: where this program lies).
  static absl::StatusOr<LocalCluster> Create(const TrainOptions& options, const OutputDirectory& output,
                                             const std::filesystem::path& sockets, uint32_t data_replicas);

  // `flags` are added to those that say where.
  Supervisor::Part Data(uint32_t replica, const std::string& data_dir, const std::vector<std::string>& flags) const;
  Supervisor::Part Shard(uint32_t shard, uint32_t shards) const;
  Supervisor::Part Worker(uint32_t worker) const;
  Supervisor::Part Model() const;

  static constexpr char kModel[] = "model";
  static std::string DataName(uint32_t replica);  // "data", "data-1", "data-2" ...
  static std::string ShardName(uint32_t shard);
  static std::string WorkerName(uint32_t worker);

  std::vector<std::string> data_addresses() const;
  std::string coordinator_address() const { return Socket(ShardName(0)); }

 private:
  LocalCluster(const TrainOptions& options, const OutputDirectory& output, std::filesystem::path bin_dir,
               std::filesystem::path sockets, uint32_t data_replicas)
      : options_(options),
        output_(output),
        bin_dir_(std::move(bin_dir)),
        sockets_(std::move(sockets)),
        data_replicas_(data_replicas) {}

  std::string Socket(const std::string& part) const { return "unix:" + (sockets_ / part).string(); }
  Supervisor::Part MakePart(const std::string& name, const std::string& program, Supervisor::Replace replace,
                            std::vector<std::string> flags) const;

  const TrainOptions& options_;
  const OutputDirectory& output_;
  std::filesystem::path bin_dir_;
  std::filesystem::path sockets_;
  uint32_t data_replicas_;
};

}  // namespace millrace
