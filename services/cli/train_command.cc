#include "services/cli/train_command.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/dataset_client.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/shutdown.h"
#include "common/status_macros.h"
#include "common/text_format.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/cli/asynchrony_flags.h"
#include "services/cli/local_cluster.h"
#include "services/cli/output_directory.h"
#include "services/cli/progress.h"
#include "services/cli/serving_check.h"
#include "services/cli/summary.h"
#include "services/cli/supervisor.h"
#include "services/cli/train_preflight.h"

namespace millrace {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);     // of the children
constexpr absl::Duration kStatusInterval = absl::Milliseconds(250);  // of the coordinator's status
constexpr absl::Duration kStatusTimeout = absl::Seconds(1);          // a dead worker must not wait longer than 2 s
constexpr absl::Duration kListenTimeout = absl::Minutes(2);          // loading LibTorch on a busy machine takes seconds
constexpr absl::Duration kDescribeTimeout = absl::Minutes(2);
constexpr absl::Duration kStopGrace = absl::Seconds(4);

// One training run. Members are in order of dependence: the last are destroyed first.
class TrainRun {
 public:
  TrainRun(const TrainOptions& options, ShutdownSignals& signals, TrainSetup setup, PrivateDirectory sockets,
           ProgressReporter& reporter)
      : options_(options),
        clock_(RealClock()),
        start_(clock_.Now()),
        setup_(std::move(setup)),
        sockets_(std::move(sockets)),
        reporter_(reporter),
        supervisor_(clock_, signals, [this](const std::string& line) { notices_.push_back(line); }) {}

  absl::Status Run() {
    absl::StatusOr<LocalCluster> cluster =
        LocalCluster::Create(options_, setup_.output, sockets_.path(), setup_.data_replicas);
    MILLRACE_RETURN_IF_ERROR(cluster.status());
    cluster_.emplace(*std::move(cluster));

    absl::Status status = TrainAndCheck();
    StopAll();
    setup_.output.WithdrawJob();
    // Nothing listens any more; what is left is for --resume.
    const absl::Status recorded = Record("", "");
    return status.ok() ? recorded : ExplainEnd(status);
  }

 private:
  absl::Status TrainAndCheck() {
    MILLRACE_RETURN_IF_ERROR(StartCluster());
    MILLRACE_RETURN_IF_ERROR(WaitForJob());
    TrainSummary summary{.workers = setup_.workers, .out = setup_.output.path().string()};
    if (!options_.no_serving) {
      MILLRACE_ASSIGN_OR_RETURN(summary.served, CheckWhatIsServed());
    }
    summary.status = status_;
    summary.recoveries = reporter_.recoveries().count();
    summary.seconds_lost = reporter_.recoveries().seconds();
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
    for (uint32_t replica = 0; replica < setup_.data_replicas; ++replica) {
      MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Data(replica, setup_.data_dir, setup_.data_flags)));
    }
    if (!options_.no_serving) MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Model()));
    for (uint32_t replica = 0; replica < setup_.data_replicas; ++replica) {
      MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::DataName(replica)));
    }
    MILLRACE_RETURN_IF_ERROR(WriteJob());

    for (uint32_t shard = 0; shard < setup_.shards; ++shard) {
      MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Shard(shard, setup_.shards)));
    }
    for (uint32_t worker = 0; worker < setup_.workers; ++worker) {
      MILLRACE_RETURN_IF_ERROR(supervisor_.Start(cluster_->Worker(worker)));
    }
    for (uint32_t shard = 0; shard < setup_.shards; ++shard) {
      MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::ShardName(shard)));
    }
    if (!options_.no_serving) MILLRACE_RETURN_IF_ERROR(WaitUntilListening(LocalCluster::kModel));
    ConnectToCoordinator();
    return Record(cluster_->coordinator_address(), ModelAddress());
  }

  // Looks after the cluster for a moment and says what happened to it.
  absl::Status Supervise() {
    const absl::Status status = supervisor_.Poll(kPollInterval);
    ShowNotices();
    return status;
  }

  void ShowNotices() {
    for (const std::string& notice : std::exchange(notices_, {})) reporter_.Print(notice);
  }

  absl::Status WaitUntilListening(const std::string& part) {
    const absl::Time deadline = clock_.Now() + kListenTimeout;
    while (supervisor_.announced(part) == nullptr) {
      if (clock_.Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(part, " did not start to listen within ",
                                                        absl::FormatDuration(kListenTimeout),
                                                        "; its log: ", setup_.output.LogFile(part)));
      }
      reporter_.Waiting(absl::StrCat(part, " to listen"));
      MILLRACE_RETURN_IF_ERROR(Supervise());
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
      if (absl::Status status = Supervise(); !status.ok()) {
        thread.request_stop();
        return status;
      }
    }
    return result.get();
  }

  // The job depends on the dataset's size, so that it can be written only when the data service answers.
  absl::Status WriteJob() {
    const auto describe = [this](std::stop_token stop) -> absl::StatusOr<v1::DatasetInfo> {
      return DescribeDataset(cluster_->data_addresses(), {}, kDescribeTimeout,
                             [&stop](std::string_view, absl::Duration time) {
                               absl::SleepFor(time);
                               return !stop.stop_requested();
                             });
    };
    MILLRACE_ASSIGN_OR_RETURN(const v1::DatasetInfo info, WhileSupervising(describe, [this] {
                                reporter_.Waiting("the data service to read the dataset");
                              }));

    if (options_.dataset.has_value() && info.name() != *options_.dataset) {
      return absl::FailedPreconditionError(
          absl::StrCat(setup_.data_dir, " holds the dataset '", info.name(), "', not '", *options_.dataset, "'"));
    }

    std::optional<v1::JobSpec> previous;
    if (options_.resume) {
      absl::StatusOr<v1::JobSpec> read = setup_.output.ReadJob();
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
                                    setup_.workers, setup_.workers == 1 ? "" : "s", setup_.output.path().string()));
    if (const std::string line = DescribeAsynchrony(spec); !line.empty()) reporter_.Print(line);
    // A job that is resumed stays as it was until the parameter server, which knows the checkpoint, has taken its
    // successor. A new one may be known at once.
    if (!previous.has_value()) MILLRACE_RETURN_IF_ERROR(setup_.output.WriteJob(spec));
    return setup_.output.ProposeJob(spec);
  }

  // Until the job is done. The coordinator does not answer now and then, and not at all while it is started again.
  absl::Status WaitForJob() {
    while (true) {
      MILLRACE_RETURN_IF_ERROR(UpdateJobStatus());
      ShowNotices();
      if (status_.state() == v1::JobStatus::STATE_DONE) return absl::OkStatus();
      const absl::Time next = clock_.Now() + (accepted_ ? kStatusInterval : kPollInterval);
      do {
        if (const absl::Status status = supervisor_.Poll(kPollInterval); !status.ok()) {
          if (!absl::IsCancelled(status)) MILLRACE_RETURN_IF_ERROR(UpdateJobStatus());
          return status;
        }
        // Workers leave a failed job: what happened to one is shown only when the job is known to go on.
      } while (notices_.empty() && clock_.Now() < next);
    }
  }

  // A channel that failed waits longer and longer before it looks for the coordinator again; a new one looks at once.
  void ConnectToCoordinator() {
    coordinator_.reset();
    coordinator_ = v1::Coordinator::NewStub(MakeChannel(cluster_->coordinator_address()));
  }

  // ABORTED if the job has failed. No answer is no error.
  absl::Status UpdateJobStatus() {
    grpc::ClientContext context;
    SetDeadline(context, kStatusTimeout);
    v1::JobStatus status;
    const grpc::Status result = coordinator_->GetJobStatus(&context, {}, &status);
    if (!result.ok()) {
      ConnectToCoordinator();
      reporter_.Waiting(absl::StrCat("the coordinator to answer: ", result.error_message()));
      return absl::OkStatus();
    }
    status_ = std::move(status);
    reporter_.Update(status_);
    switch (status_.state()) {
      case v1::JobStatus::STATE_FAILED:
        return absl::AbortedError(absl::StrCat("the job failed: ", status_.failure()));
      case v1::JobStatus::STATE_UNSPECIFIED:
      case v1::JobStatus::STATE_STARTING:
      case v1::JobStatus::STATE_RECOVERING:
        return absl::OkStatus();
      default:
        return AcceptJob();
    }
  }

  // From now on it is this job that --resume goes on with.
  absl::Status AcceptJob() {
    if (accepted_) return absl::OkStatus();
    accepted_ = true;
    MILLRACE_RETURN_IF_ERROR(setup_.output.AcceptJob());
    return Record(cluster_->coordinator_address(), ModelAddress());
  }

  absl::StatusOr<ServedResult> CheckWhatIsServed() {
    StopWorkers();  // they are done; the measurement should have the machine to itself
    std::atomic<uint64_t> done = 0;
    return WhileSupervising(
        [&](std::stop_token stop) -> absl::StatusOr<ServedResult> {
          MILLRACE_ASSIGN_OR_RETURN(const TestImages images,
                                    FetchTestImages(cluster_->data_addresses(), status_.plan(), stop));
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
    absl::Status status = WaitUntilListening(LocalCluster::kModel);  // it may be on its way back from a death
    if (status.ok()) {
      const AnnouncedAddresses* const addresses = supervisor_.announced(LocalCluster::kModel);
      reporter_.Print(absl::StrCat("Serving ", model_name_, " version ", status_.exported_version(), " on gRPC ",
                                   addresses->grpc, " and http://", addresses->http, "/ until Ctrl-C"));
      status = Record("", ModelAddress());
    }
    while (status.ok()) status = Supervise();
    return absl::IsCancelled(status) ? absl::OkStatus() : status;
  }

  std::string ModelAddress() const {
    const AnnouncedAddresses* const addresses = supervisor_.announced(LocalCluster::kModel);
    if (addresses != nullptr) model_address_ = addresses->grpc;
    return model_address_;
  }

  std::vector<std::string> StatefulParts() const {
    std::vector<std::string> names;
    for (uint32_t replica = 0; replica < setup_.data_replicas; ++replica) {
      names.push_back(LocalCluster::DataName(replica));
    }
    for (uint32_t shard = 0; shard < setup_.shards; ++shard) names.push_back(LocalCluster::ShardName(shard));
    return names;
  }

  void StopWorkers() {
    std::vector<std::string> names;
    for (uint32_t worker = 0; worker < setup_.workers; ++worker) names.push_back(LocalCluster::WorkerName(worker));
    supervisor_.Stop(names, kStopGrace);
  }

  // Clients before servers, so that nobody complains about a peer that left.
  void StopAll() {
    StopWorkers();
    supervisor_.Stop(supervisor_.names(), kStopGrace);
  }

  // A run that was not accepted leaves the settings of the one it wanted to resume.
  absl::Status Record(const std::string& coordinator, const std::string& model) const {
    ClusterRecord record{.data_dir = setup_.data_dir,
                         .workers = setup_.workers,
                         .shards = setup_.shards,
                         .data_replicas = setup_.data_replicas};
    record.data_flags = setup_.data_flags;
    if (!accepted_ && setup_.previous.has_value()) record = *setup_.previous;
    record.process_id = getpid();
    record.coordinator = coordinator;
    record.model = model;
    return WriteClusterRecord(setup_.output.path(), record);
  }

  // A run that ended early, but has committed something, can be gone on with: says how.
  absl::Status ExplainEnd(const absl::Status& status) const {
    const bool may_go_on = absl::IsAborted(status) || absl::IsCancelled(status);
    if (!may_go_on || status_.state() == v1::JobStatus::STATE_DONE || !HoldsResults(setup_.output.path()))
      return status;
    const std::string from = status_.committed_version() == 0
                                 ? ""
                                 : absl::StrCat(" from the checkpoint at step ", status_.committed_version());
    const std::string separator = absl::StrContains(status.message(), '\n') ? "\n" : "; ";
    return absl::Status(
        status.code(), absl::StrCat(status.message(), separator, "go on", from, " with: millrace train --resume --out ",
                                    setup_.output.path().string()));
  }

  const TrainOptions& options_;
  const Clock& clock_;
  const absl::Time start_;
  const TrainSetup setup_;
  const PrivateDirectory sockets_;
  ProgressReporter& reporter_;
  std::vector<std::string> notices_;  // of the supervisor, not shown yet
  std::optional<LocalCluster> cluster_;
  Supervisor supervisor_;
  std::unique_ptr<v1::Coordinator::Stub> coordinator_;
  std::string model_name_;
  mutable std::string model_address_;  // stays known while the model service is being restarted
  v1::JobStatus status_;               // the newest
  bool accepted_ = false;              // the parameter servers took the job
};

absl::Status PrepareAndRun(const TrainOptions& options, ShutdownSignals& signals, ProgressReporter& reporter) {
  MILLRACE_ASSIGN_OR_RETURN(TrainSetup setup, PrepareTrain(options));
  MILLRACE_ASSIGN_OR_RETURN(PrivateDirectory sockets, PrivateDirectory::Create());
  return TrainRun(options, signals, std::move(setup), std::move(sockets), reporter).Run();
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
