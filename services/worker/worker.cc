#include "services/worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/batch_client.h"
#include "common/clock.h"
#include "common/dataset_client.h"
#include "common/log.h"
#include "common/model/runtime.h"
#include "common/random.h"
#include "common/replica_choice.h"
#include "common/status_macros.h"
#include "google/protobuf/util/message_differencer.h"
#include "services/worker/batch_feed.h"
#include "services/worker/coordinator_client.h"
#include "services/worker/parameter_client.h"

namespace millrace {
namespace {

// Worth another session: the coordinator may be starting, restarting, or not have noticed that the last one ended.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status) ||
         absl::IsAlreadyExists(status) || absl::IsUnknown(status);
}

absl::Status CheckWelcome(const v1::Welcome& welcome, const Replica& replica) {
  const v1::JobPlan& plan = welcome.plan();
  if (replica.table().size() != plan.parameter_count()) {
    return absl::FailedPreconditionError(absl::StrCat("the network has ", replica.table().size(),
                                                      " parameters here, the coordinator says ", plan.parameter_count(),
                                                      ": another build?"));
  }
  if (plan.steps_per_epoch() == 0 || plan.spec().slots() == 0) {
    return absl::InternalError("the coordinator's plan has no steps or no slots");
  }
  if (welcome.data_addresses().empty()) return absl::InternalError("the coordinator names no data service");
  return absl::OkStatus();
}

}  // namespace

Worker::Worker(Options options, ServiceContext* context)
    : options_(std::move(options)),
      context_(*context),
      metrics_(context->metrics()),
      incarnation_(RandomSeed()),
      activity_(&RealClock()) {}

Worker::~Worker() {
  Drain(absl::ZeroDuration());
  if (thread_.joinable()) thread_.join();
}

absl::Status Worker::Started(const ListenAddresses&) {
  thread_ = std::thread(&Worker::Run, this);
  return absl::OkStatus();
}

absl::Status Worker::Ready() {
  MutexLock lock(&mutex_);
  if (job_.empty())
    return absl::UnavailableError(absl::StrCat("no session with the coordinator at ", options_.coordinator));
  return absl::OkStatus();
}

std::string Worker::StatusPage() {
  std::string job;
  {
    MutexLock lock(&mutex_);
    job = job_;
  }
  return absl::StrCat("worker       ", options_.name, "\ncoordinator  ", options_.coordinator, "\ndevice       ",
                      options_.device, "\njob          ", job.empty() ? "none" : job, "\ndoing        ",
                      activity_.Describe(), "\nleases       ", metrics_.finished_leases.Value(), " finished, ",
                      metrics_.declined_leases.Value(), " declined\nsamples      ", metrics_.train_samples.Value(),
                      " trained\n");
}

void Worker::Drain(absl::Duration grace) {
  const absl::Time deadline = absl::Now() + grace;
  MutexLock lock(&mutex_);
  draining_ = true;
  if (loop_ != nullptr) loop_->Drain();
  changed_.SignalAll();
  while (thread_.joinable() && !ended_ && absl::Now() < deadline) {
    changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
  }
  // Its lease is lost with the connection; the coordinator grants it to another worker.
  if (loop_ != nullptr) loop_->Stop();
}

absl::Status Worker::StopRequested() const {
  MutexLock lock(&mutex_);
  return draining_ ? absl::CancelledError("the worker is draining") : absl::OkStatus();
}

void Worker::WaitUnlessDraining(absl::Duration time) {
  const absl::Time deadline = absl::Now() + time;
  MutexLock lock(&mutex_);
  while (!draining_ && absl::Now() < deadline) changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
}

void Worker::Run() {
  absl::Cleanup ended = [this] {
    MutexLock lock(&mutex_);
    ended_ = true;
    changed_.SignalAll();
  };
  Backoff backoff;
  absl::Time absent_since = absl::Now();
  while (StopRequested().ok()) {
    bool welcomed = false;
    const absl::StatusOr<WorkLoop::End> end = RunSession(welcomed);
    if (end.ok()) {
      LogInfo(*end == WorkLoop::End::kFinished ? "the job is done" : "drained");
      context_.RequestStop(absl::OkStatus());
      return;
    }
    if (!StopRequested().ok()) return;
    if (!IsTransient(end.status())) {
      context_.RequestStop(end.status());
      return;
    }
    const absl::Time now = absl::Now();
    if (welcomed) {
      metrics_.coordinator_breaks.Increment();
      absent_since = now;
      backoff.Reset();
      LogWarning("session with the coordinator was lost; trying again", {{"error", end.status()}});
    }
    if (now - absent_since >= options_.coordinator_timeout) {
      context_.RequestStop(absl::UnavailableError(absl::StrCat("no coordinator at ", options_.coordinator, " for ",
                                                               absl::FormatDuration(options_.coordinator_timeout), ": ",
                                                               end.status().message())));
      return;
    }
    activity_.WaitingFor(absl::StrCat("the coordinator at ", options_.coordinator));
    WaitUnlessDraining(std::min(backoff.Next(), absent_since + options_.coordinator_timeout - now));
  }
}

absl::StatusOr<WorkLoop::End> Worker::RunSession(bool& welcomed) {
  const absl::Time give_up = absl::Now() + options_.coordinator_timeout;
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<CoordinatorClient> coordinator,
                            CoordinatorClient::Connect({.address = options_.coordinator,
                                                        .hello = Hello(),
                                                        .waiting_for = [this] { return activity_.waiting_for(); },
                                                        .credentials = context_.channel_credentials()},
                                                       [&](std::string_view what) -> absl::Status {
                                                         activity_.WaitingFor(what);
                                                         if (absl::Now() > give_up)
                                                           return absl::DeadlineExceededError("not welcomed");
                                                         return StopRequested();
                                                       }));
  welcomed = true;
  const v1::JobPlan& plan = coordinator->welcome().plan();
  LogInfo("joined a job", {{"model", plan.spec().model_name()},
                           {"architecture", plan.network().architecture()},
                           {"parameters", plan.parameter_count()},
                           {"slots", plan.spec().slots()},
                           {"steps", plan.total_steps()},
                           {"shards", coordinator->welcome().shards_size()},
                           {"device", options_.device}});
  activity_.Doing("building the network");
  MILLRACE_ASSIGN_OR_RETURN(Replica* const replica, ReplicaFor(plan));
  MILLRACE_RETURN_IF_ERROR(CheckWelcome(coordinator->welcome(), *replica));
  replica->set_label_smoothing(plan.spec().label_smoothing());

  const auto& addresses = coordinator->welcome().data_addresses();
  BatchClient data(
      {.addresses = OrderReplicas({addresses.begin(), addresses.end()}, options_.name),
       .plan = BatchPlanOf(plan),
       .image_bytes = uint64_t{plan.network().channels()} * plan.network().height() * plan.network().width(),
       .breaks = &metrics_.data_breaks,
       .credentials = context_.channel_credentials()});
  BatchFeed batches(&data);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ParameterClient> parameters,
                            ParameterClient::Create({.run_id = plan.run_id(),
                                                     .worker = options_.name,
                                                     .incarnation = incarnation_,
                                                     .shards = {coordinator->welcome().shards().begin(),
                                                                coordinator->welcome().shards().end()},
                                                     .parameters = replica->parameters(),
                                                     .wire = plan.spec().wire(),
                                                     .credentials = context_.channel_credentials()},
                                                    &metrics_));
  return RunLoop(plan, {.model = replica,
                        .leases = coordinator.get(),
                        .batches = &batches,
                        .parameters = parameters.get(),
                        .activity = &activity_,
                        .metrics = &metrics_});
}

absl::StatusOr<WorkLoop::End> Worker::RunLoop(const v1::JobPlan& plan, WorkLoop::Parts parts) {
  WorkLoop loop(plan, parts);
  {
    MutexLock lock(&mutex_);
    loop_ = &loop;
    job_ = absl::StrCat(plan.spec().model_name(), " (", plan.network().architecture(), ", ", plan.total_steps(),
                        " steps of ", plan.spec().batch_size(), " samples in ", plan.spec().slots(), " slots)");
    if (draining_) loop.Drain();
  }
  absl::Cleanup forget = [this] {
    MutexLock lock(&mutex_);
    loop_ = nullptr;
    job_.clear();
  };
  return loop.Run();
}

v1::Hello Worker::Hello() const {
  v1::Hello hello;
  hello.set_worker(options_.name);
  hello.set_incarnation(incarnation_);
  hello.set_process_id(getpid());
  hello.set_torch_version(TorchVersion());
  hello.set_cpu_capability(CpuCapability());
  hello.set_threads(static_cast<uint32_t>(options_.threads));
  hello.set_device(options_.device);
  return hello;
}

absl::StatusOr<Replica*> Worker::ReplicaFor(const v1::JobPlan& plan) {
  const bool same =
      replica_ != nullptr && google::protobuf::util::MessageDifferencer::Equals(replica_->network(), plan.network());
  if (!same) {
    MILLRACE_ASSIGN_OR_RETURN(replica_, Replica::Create(plan.network(), {.device = options_.device}));
  }
  return replica_.get();
}

}  // namespace millrace
