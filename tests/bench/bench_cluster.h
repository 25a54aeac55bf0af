// A cluster without workers, for benchmarks: millrace-data and the shards as real processes on Unix sockets, started as
// `millrace train` starts them. The job's dataset is drawn, and so large that its first epoch never ends.
//
// Threads: CpuSeconds and PeakMemoryMib from any; the rest from the one that started it (the processes end with that
// thread). They are killed with the object.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/local_cluster.h"
#include "services/cli/service_process.h"
#include "services/cli/train_options.h"
#include "services/cli/train_preflight.h"

namespace millrace {

class BenchCluster {
 public:
  struct Options {
    std::string bin_dir;
    std::string out;  // a new directory
    uint32_t shards = 1;
    uint32_t image_size = 28;  // pixels
    JobFlags job;
  };

  // Returns when every shard listens.
  static absl::StatusOr<std::unique_ptr<BenchCluster>> Start(const Options& options);

  // A directory of the worker's own, in which all the cluster's sockets are too: under one name gRPC would let the
  // workers of a process share a connection, which real workers do not.
  absl::StatusOr<std::filesystem::path> SocketsFor(uint32_t worker) const;
  // "unix:" and a socket's path, seen from there.
  static std::string AddressIn(const std::filesystem::path& sockets, const std::string& address);
  std::string coordinator_address() const { return cluster_->coordinator_address(); }

  // Processor time that each shard has used so far.
  std::vector<double> CpuSeconds() const;
  // The most memory that each has had resident, in MiB.
  std::vector<double> PeakMemoryMib() const;
  // An error once a process has ended.
  absl::Status Check();
  bool IsCommitted(uint64_t version) const;

 private:
  BenchCluster(TrainOptions options, TrainSetup setup, PrivateDirectory sockets)
      : options_(std::move(options)), setup_(std::move(setup)), sockets_(std::move(sockets)) {}

  absl::Status StartProcesses();
  absl::Status Launch(const Supervisor::Part& part);

  const TrainOptions options_;
  const TrainSetup setup_;
  const PrivateDirectory sockets_;
  std::unique_ptr<LocalCluster> cluster_;
  std::vector<std::unique_ptr<ServiceProcess>> processes_;  // the data service, then the shards
};

}  // namespace millrace
