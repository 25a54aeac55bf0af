#include "tests/bench/bench_cluster.h"

#include <time.h>

#include <fstream>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/dataset_client.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr absl::Duration kStartTimeout = absl::Minutes(2);  // loading LibTorch on a busy machine takes seconds
constexpr absl::Duration kPoll = absl::Milliseconds(5);
constexpr uint64_t kTrainSamples = 100'000'000;

}  // namespace

absl::StatusOr<std::unique_ptr<BenchCluster>> BenchCluster::Start(const Options& options) {
  TrainOptions train;
  train.bin_dir = options.bin_dir;
  train.out = options.out;
  train.shards = options.shards;
  train.data_dir = absl::StrCat("synthetic:train=", kTrainSamples, ",test=10,size=", options.image_size);
  train.job = options.job;
  train.job.validation_count = 0;
  MILLRACE_RETURN_IF_ERROR(ValidateTrainOptions(train));
  MILLRACE_ASSIGN_OR_RETURN(TrainSetup setup, PrepareTrain(train));
  MILLRACE_ASSIGN_OR_RETURN(PrivateDirectory sockets, PrivateDirectory::Create());
  std::unique_ptr<BenchCluster> cluster(new BenchCluster(train, std::move(setup), std::move(sockets)));
  MILLRACE_RETURN_IF_ERROR(cluster->StartProcesses());
  return cluster;
}

absl::Status BenchCluster::StartProcesses() {
  MILLRACE_ASSIGN_OR_RETURN(LocalCluster cluster,
                            LocalCluster::Create(options_, setup_.output, sockets_.path(), setup_.data_replicas));
  cluster_ = std::make_unique<LocalCluster>(std::move(cluster));
  MILLRACE_RETURN_IF_ERROR(Launch(cluster_->Data(0, setup_.data_dir, setup_.data_flags)));
  const auto wait = [this](std::string_view, absl::Duration) {
    absl::SleepFor(kPoll);
    return Check().ok();
  };
  MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo info,
                            DescribeDataset(cluster_->data_addresses(), {}, kStartTimeout, wait));
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec spec, MakeJobSpec(options_.job, nullptr, info.train_count()));
  MILLRACE_RETURN_IF_ERROR(setup_.output.ProposeJob(spec));
  for (uint32_t shard = 0; shard < setup_.shards; ++shard) {
    MILLRACE_RETURN_IF_ERROR(Launch(cluster_->Shard(shard, setup_.shards)));
  }
  const absl::Time deadline = absl::Now() + kStartTimeout;
  for (const auto& process : processes_) {
    while (!process->announced().has_value()) {
      if (absl::Now() > deadline) return absl::DeadlineExceededError("a process did not start to listen");
      MILLRACE_RETURN_IF_ERROR(Check());
      absl::SleepFor(kPoll);
    }
  }
  return absl::OkStatus();
}

absl::Status BenchCluster::Launch(const Supervisor::Part& part) {
  MILLRACE_ASSIGN_OR_RETURN(auto process, ServiceProcess::Start(part.command, part.log_file));
  processes_.push_back(std::move(process));
  return absl::OkStatus();
}

absl::Status BenchCluster::Check() {
  for (const auto& process : processes_) {
    if (!process->Poll()) return absl::AbortedError(absl::StrCat("a process of the cluster ", process->DescribeEnd()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::filesystem::path> BenchCluster::SocketsFor(uint32_t worker) const {
  const std::filesystem::path link = sockets_.path() / absl::StrCat("w", worker);
  std::error_code error;
  std::filesystem::create_directory_symlink(".", link, error);
  if (error) return absl::InternalError(absl::StrCat("cannot make ", link.string(), ": ", error.message()));
  return link;
}

std::string BenchCluster::AddressIn(const std::filesystem::path& sockets, const std::string& address) {
  return absl::StrCat("unix:", (sockets / std::filesystem::path(address).filename()).string());
}

std::vector<double> BenchCluster::CpuSeconds() const {
  std::vector<double> seconds;
  for (size_t shard = 1; shard < processes_.size(); ++shard) {
    clockid_t clock;
    timespec used{};
    if (clock_getcpuclockid(processes_[shard]->pid(), &clock) != 0 || clock_gettime(clock, &used) != 0) {
      seconds.push_back(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    seconds.push_back(static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec));
  }
  return seconds;
}

std::vector<double> BenchCluster::PeakMemoryMib() const {
  std::vector<double> peaks;
  for (size_t shard = 1; shard < processes_.size(); ++shard) {
    std::ifstream status(absl::StrCat("/proc/", processes_[shard]->pid(), "/status"));
    double kib = std::numeric_limits<double>::quiet_NaN();
    for (std::string word; status >> word;) {
      if (word == "VmHWM:") status >> kib;
    }
    peaks.push_back(kib / 1024);
  }
  return peaks;
}

bool BenchCluster::IsCommitted(uint64_t version) const {
  std::error_code error;
  return std::filesystem::exists(setup_.output.path() / "checkpoints" / absl::StrCat(version) / "manifest.json", error);
}

}  // namespace millrace
