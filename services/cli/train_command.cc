#include "services/cli/train_command.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <future>
#include <optional>
#include <system_error>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/address.h"
#include "common/batch_client.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/cli/local_cluster.h"
#include "services/cli/output_directory.h"
#include "services/cli/progress.h"
#include "services/cli/serving_check.h"
#include "services/cli/summary.h"
#include "services/cli/supervisor.h"
#include "services/cli/text_format.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);     // of the children
constexpr absl::Duration kStatusInterval = absl::Milliseconds(250);  // of the coordinator's status
constexpr absl::Duration kStatusTimeout = absl::Seconds(1);          // a dead worker must not wait longer than 2 s
constexpr absl::Duration kListenTimeout = absl::Minutes(2);          // loading LibTorch on a busy machine takes seconds
constexpr absl::Duration kDescribeTimeout = absl::Minutes(2);
constexpr absl::Duration kStopGrace = absl::Seconds(4);
constexpr uint32_t kDefaultWorkers = 2;
constexpr uint32_t kDefaultShards = 1;

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
    if (absl::StartsWith(entry->path().filename().string(), "train-images")) return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("no dataset in ", data_dir, error ? " (" + error.message() + ")" : "",
                   ": run deploy/fetch_data.sh, or name a directory of IDX files by --data-dir"));
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

// One training run. Members are in order of dependence: the last are destroyed first.
class TrainRun {
 public:
  TrainRun(const TrainOptions& options, ShutdownSignals& signals, OutputDirectory output, PrivateDirectory sockets,
           ProgressReporter& reporter)
      : options_(options),
        clock_(RealClock()),
        start_(clock_.Now()),
        output_(std::move(output)),
        sockets_(std::move(sockets)),
        reporter_(reporter),
        supervisor_(clock_, signals, [this](const std::string& line) { reporter_.Print(line); }) {}

  absl::Status Run(const ClusterRecord& previous, const std::string& data_dir) {
    data_dir_ = data_dir;
    workers_ = options_.workers.value_or(previous.workers);
    shards_ = options_.shards.value_or(previous.shards);
    absl::StatusOr<LocalCluster> cluster = LocalCluster::Create(options_, output_, sockets_.path());
    MILLRACE_RETURN_IF_ERROR(cluster.status());
    cluster_.emplace(*std::move(cluster));

    absl::Status status = TrainAndCheck();
    StopAll();
    // Nothing listens any more; what is left is for --resume.
    const absl::Status recorded = Record("", "");
    return status.ok() ? recorded : ExplainEnd(status);
  }

 private:
  absl::Status TrainAndCheck() {
    MILLRACE_RETURN_IF_ERROR(StartCluster());
    MILLRACE_RETURN_IF_ERROR(WaitForJob());
    TrainSummary summary{.workers = workers_, .out = output_.path().string()};
    if (!options_.no_serving) {
      MILLRACE_ASSIGN_OR_RETURN(summary.served, CheckWhatIsServed());
    }
    summary.status = status_;
    summary.wall_seconds = absl::ToDoubleSeconds(clock_.Now() - start_);
    reporter_.Print("");
    std::fputs(FormatSummary(summary).c_str(), stdout);
    std::fflush(stdout);
    if (!options_.json.empty()) {
      MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(options_.json, SummaryJson(summary)));
    }
    if (summary.served.has_value() && summary.served->failed > 0) {
      return absl::AbortedError(absl::StrCat(summary.served->failed, " of ", summary.served->requests,
                                             " requests to the model service failed or were answered by another "
                                             "version"));
    }
    return options_.serve ? ServeUntilSignal() : absl::OkStatus();
  }

  absl::Status StartCluster() {
    MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Data(data_dir_)));
    if (!options_.no_serving) MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Model()));
    MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::kData));
    MILLRACE_RETURN_IF_ERROR(WriteJob());

    for (uint32_t shard = 0; shard < shards_; ++shard) {
      MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Shard(shard, shards_)));
    }
    for (uint32_t worker = 0; worker < workers_; ++worker) {
      MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Worker(worker)));
    }
    for (uint32_t shard = 0; shard < shards_; ++shard) {
      MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::ShardName(shard)));
    }
    if (!options_.no_serving) MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::kModel));
    coordinator_ = v1::Coordinator::NewStub(MakeChannel(cluster_->coordinator_address()));
    return Record(cluster_->coordinator_address(), ModelAddress());
  }

  absl::Status WaitUntilListening(const std::string& part) {
    const absl::Time deadline = clock_.Now() + kListenTimeout;
    while (supervisor_.announced(part) == nullptr) {
      if (clock_.Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(part, " did not start to listen within ",
                                                        absl::FormatDuration(kListenTimeout),
                                                        "; its log: ", output_.LogFile(part)));
      }
      reporter_.Waiting(absl::StrCat(part, " to listen"));
      MILLRACE_RETURN_IF_ERROR(supervisor_.Poll(kPollInterval));
    }
    return absl::OkStatus();
  }

  // Runs a blocking call on a thread of its own while the cluster is looked after. `call` must end soon after its stop
  // token says so, which happens if a part of the cluster ends for good or a signal comes.
  template <typename Call, typename Watch>
  auto WhileSupervising(Call call, Watch watch) -> decltype(call(std::stop_token())) {
    std::promise<decltype(call(std::stop_token()))> promise;
    auto result = promise.get_future();
    std::jthread thread([&](std::stop_token stop) { promise.set_value(call(std::move(stop))); });
    while (result.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      watch();
      if (absl::Status status = supervisor_.Poll(kPollInterval); !status.ok()) {
        thread.request_stop();
        return status;
      }
    }
    return result.get();
  }

  // The job depends on the dataset's size, so that it can be written only when the data service answers.
  absl::Status WriteJob() {
    const auto describe = [this](std::stop_token stop) -> absl::StatusOr<v1::DatasetInfo> {
      return DescribeDataset(cluster_->data_address(), {}, kDescribeTimeout,
                             [&stop](std::string_view) { return !stop.stop_requested(); });
    };
    MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo info, WhileSupervising(describe, [this] {
                                reporter_.Waiting("the data service to read the dataset");
                              }));

    if (options_.dataset.has_value() && info.name() != *options_.dataset) {
      return absl::FailedPreconditionError(
          absl::StrCat(data_dir_, " holds the dataset '", info.name(), "', not '", *options_.dataset, "'"));
    }

    std::optional<v1::JobSpec> previous;
    if (options_.resume) {
      absl::StatusOr<v1::JobSpec> read = output_.ReadJob();
      if (read.ok()) {
        previous = *std::move(read);
      } else if (!absl::IsNotFound(read.status())) {
        return read.status();
      }
    }
    MILLRACE_ASSIGN_OR_RETURN(
        const v1::JobSpec spec,
        MakeJobSpec(options_.job, previous.has_value() ? &*previous : nullptr, info.train_count()));
    model_name_ = spec.model_name();
    reporter_.Print(absl::StrFormat("%s: %s samples to train and validate on, %s to test on; %d worker%s; output in %s",
                                    info.name(), FormatCount(info.train_count()), FormatCount(info.test_count()),
                                    workers_, workers_ == 1 ? "" : "s", output_.path().string()));
    return output_.WriteJob(spec);
  }

  // Until the job is done. The coordinator does not answer for a moment now and then; only its death is an error.
  absl::Status WaitForJob() {
    while (true) {
      grpc::ClientContext context;
      SetDeadline(context, kStatusTimeout);
      v1::JobStatus status;
      const grpc::Status result = coordinator_->GetJobStatus(&context, {}, &status);
      if (result.ok()) {
        status_ = std::move(status);
        reporter_.Update(status_);
        if (status_.state() == v1::JobStatus::STATE_DONE) return absl::OkStatus();
        if (status_.state() == v1::JobStatus::STATE_FAILED) {
          return absl::AbortedError(absl::StrCat("the job failed: ", status_.failure()));
        }
      } else {
        reporter_.Waiting(absl::StrCat("the coordinator to answer: ", result.error_message()));
      }
      const absl::Time next = clock_.Now() + kStatusInterval;
      do {
        MILLRACE_RETURN_IF_ERROR(supervisor_.Poll(kPollInterval));
      } while (clock_.Now() < next);
    }
  }

  absl::StatusOr<ServedResult> CheckWhatIsServed() {
    StopWorkers();  // they are done; the measurement should have the machine to itself
    std::atomic<uint64_t> done = 0;
    return WhileSupervising(
        [&](std::stop_token stop) -> absl::StatusOr<ServedResult> {
          MILLRACE_ASSIGN_OR_RETURN(const TestImages images, FetchTestImages(cluster_->data_address(), status_.plan()));
          return CheckServing(ModelAddress(), model_name_, status_.exported_version(), images, stop, done);
        },
        [&] {
          if (done == 0) {
            reporter_.Waiting("the model service to serve the final version");
          } else {
            reporter_.Live(absl::StrCat("checking what is served: ", FormatCount(done), " of ",
                                        FormatCount(status_.plan().dataset().test_count()), " test images"));
          }
        });
  }

  absl::Status ServeUntilSignal() {
    StopWorkers();
    supervisor_.Stop(StatefulParts(), kStopGrace);
    const AnnouncedAddresses* const addresses = supervisor_.announced(LocalCluster::kModel);
    reporter_.Print(absl::StrCat("Serving ", model_name_, " version ", status_.exported_version(), " on gRPC ",
                                 addresses->grpc, " and http://", addresses->http, "/ until Ctrl-C"));
    MILLRACE_RETURN_IF_ERROR(Record("", ModelAddress()));
    absl::Status status;
    while (status.ok()) status = supervisor_.Poll(kPollInterval);
    return absl::IsCancelled(status) ? absl::OkStatus() : status;
  }

  std::string ModelAddress() const {
    const AnnouncedAddresses* const addresses = supervisor_.announced(LocalCluster::kModel);
    if (addresses != nullptr) model_address_ = addresses->grpc;
    return model_address_;
  }

  std::vector<std::string> StatefulParts() const {
    std::vector<std::string> names = {LocalCluster::kData};
    for (uint32_t shard = 0; shard < shards_; ++shard) names.push_back(LocalCluster::ShardName(shard));
    return names;
  }

  void StopWorkers() {
    std::vector<std::string> names;
    for (uint32_t worker = 0; worker < workers_; ++worker) names.push_back(LocalCluster::WorkerName(worker));
    supervisor_.Stop(names, kStopGrace);
  }

  // Clients before servers, so that nobody complains about a peer that left.
  void StopAll() {
    StopWorkers();
    supervisor_.Stop(supervisor_.names(), kStopGrace);
  }

  absl::Status Record(const std::string& coordinator, const std::string& model) const {
    return WriteClusterRecord(output_.path(), {.process_id = getpid(),
                                               .data_dir = data_dir_,
                                               .workers = workers_,
                                               .shards = shards_,
                                               .coordinator = coordinator,
                                               .model = model});
  }

  // A run that ended early, but has committed something, can be gone on with: says how.
  absl::Status ExplainEnd(const absl::Status& status) const {
    const bool may_go_on = absl::IsAborted(status) || absl::IsCancelled(status);
    if (!may_go_on || status_.state() == v1::JobStatus::STATE_DONE || !HoldsResults(output_.path())) return status;
    const std::string from = status_.committed_version() == 0
                                 ? ""
                                 : absl::StrCat(" from the checkpoint at step ", status_.committed_version());
    const std::string separator = absl::StrContains(status.message(), '\n') ? "\n" : "; ";
    return absl::Status(status.code(), absl::StrCat(status.message(), separator, "go on", from,
                                                    " with: millrace train --resume --out ", output_.path().string()));
  }

  const TrainOptions& options_;
  const Clock& clock_;
  const absl::Time start_;
  const OutputDirectory output_;
  const PrivateDirectory sockets_;
  ProgressReporter& reporter_;
  std::string data_dir_;
  uint32_t workers_ = 0;
  uint32_t shards_ = 0;
  std::optional<LocalCluster> cluster_;
  Supervisor supervisor_;
  std::unique_ptr<v1::Coordinator::Stub> coordinator_;
  std::string model_name_;
  mutable std::string model_address_;  // stays known while the model service is being restarted
  v1::JobStatus status_;               // the newest
};

// Everything that can be checked before the first child is started.
absl::Status PrepareAndRun(const TrainOptions& options, ShutdownSignals& signals, ProgressReporter& reporter) {
  ClusterRecord previous{.workers = kDefaultWorkers, .shards = kDefaultShards};
  const std::string out = options.out.empty() ? NewOutputPath(options.job) : options.out;
  if (options.resume) {
    if (absl::StatusOr<ClusterRecord> record = ReadClusterRecord(out); record.ok()) {
      previous = *std::move(record);
    } else if (!absl::IsNotFound(record.status())) {
      return record.status();
    }
  }
  std::string data_dir = options.data_dir.value_or(options.dataset.has_value() ? "" : previous.data_dir);
  if (data_dir.empty()) data_dir = DefaultDataDir(options.dataset.value_or("mnist"));
  data_dir = fs::absolute(data_dir).string();
  MILLRACE_RETURN_IF_ERROR(CheckDataDir(data_dir));
  MILLRACE_RETURN_IF_ERROR(CheckJsonPath(options.json));
  MILLRACE_RETURN_IF_ERROR(CheckServingAddresses(options));
  absl::StatusOr<OutputDirectory> output = OutputDirectory::Open(out, options.log_dir, options.resume);
  MILLRACE_RETURN_IF_ERROR(AsBadPath(output.status()));
  MILLRACE_ASSIGN_OR_RETURN(PrivateDirectory sockets, PrivateDirectory::Create());
  TrainRun run(options, signals, *std::move(output), std::move(sockets), reporter);
  return run.Run(previous, data_dir);
}

}  // namespace

int RunTrain(const TrainOptions& options) {
  if (const absl::Status status = ValidateTrainOptions(options); !status.ok()) {
    std::fprintf(stderr, "millrace train: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  ShutdownSignals signals;
  absl::Status status;
  {
    ProgressReporter reporter(stderr, isatty(STDERR_FILENO) != 0, RealClock());
    try {
      status = PrepareAndRun(options, signals, reporter);
    } catch (const std::exception& error) {  // the standard library's: no memory, no working directory
      status = absl::InternalError(error.what());
    }
  }
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "millrace: %s\n", std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? kExitInterrupted : ExitCodeFor(status);
}

}  // namespace millrace
