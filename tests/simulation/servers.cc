#include "tests/simulation/servers.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/backoff.h"
#include "common/model/servable.h"
#include "common/status_macros.h"
#include "services/parameter_server/checkpoint_writer.h"
#include "services/parameter_server/schedule.h"

namespace millrace::simulation {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(2);
constexpr absl::Duration kSaveDeadline = absl::Seconds(5);
constexpr absl::Duration kCatchUp = absl::Seconds(10);  // as shard_fleet.cc
// As parameter_server.cc.
constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(200);
constexpr absl::Duration kRetryMax = absl::Milliseconds(500);

}  // namespace

// All shards, over the simulated network.
class Server::Fleet final : public ShardFleet {
 public:
  Fleet(Server* server, uint64_t run_id) : server_(*server), run_id_(run_id) {}

  absl::StatusOr<std::vector<v1::SaveCheckpointResponse>> Save(uint64_t version,
                                                               const std::string& directory) override {
    std::vector<Network::Call<v1::SaveCheckpointResponse>> calls;
    for (uint32_t i = 0; i < server_.job_.num_shards; ++i) calls.push_back(StartSave(i, version, directory));
    const absl::Time give_up = Now() + kCatchUp;
    std::vector<v1::SaveCheckpointResponse> saved;
    for (uint32_t i = 0; i < calls.size(); ++i) {
      while (true) {
        const absl::StatusOr<v1::SaveCheckpointResponse> response = Finish(calls[i], kSaveDeadline);
        if (response.ok()) {
          saved.push_back(*response);
          break;
        }
        const bool again = absl::IsNotFound(response.status()) || absl::IsUnavailable(response.status());
        if (!again || cancelled_ || Now() > give_up || !process().Sleep(absl::Milliseconds(50))) {
          return response.status();
        }
        calls[i] = StartSave(i, version, directory);
      }
    }
    return saved;
  }

  absl::StatusOr<std::vector<float>> FetchWeights(uint64_t version) override {
    std::vector<float> weights;
    for (uint32_t i = 0; i < server_.job_.num_shards; ++i) {
      const auto fetch = [version](Shard& shard) { return shard.WeightsAt(version); };
      MILLRACE_ASSIGN_OR_RETURN(const WeightsVersion part, Finish(Call<WeightsVersion>(i, fetch), kSaveDeadline));
      weights.insert(weights.end(), part.values.begin(), part.values.end());
    }
    return weights;
  }

  void Release(uint64_t version, bool committed) override {
    for (uint32_t i = 0; i < server_.job_.num_shards; ++i) {
      const auto release = [version, committed](Shard& shard) -> absl::StatusOr<bool> {
        shard.ReleaseSnapshot(version, committed);
        return true;
      };
      Finish(Call<bool>(i, release), kCallDeadline).IgnoreError();
    }
  }

  void Cancel() override { cancelled_ = true; }

 private:
  // Cancel ends it soon.
  template <typename T>
  absl::StatusOr<T> Finish(const Network::Call<T>& call, absl::Duration timeout) {
    const absl::Time deadline = Now() + timeout;
    while (!call.done() && !cancelled_ && Now() < deadline && process().Wait(absl::Milliseconds(100))) {
    }
    return cancelled_ ? absl::CancelledError("shutting down") : call.Await(process(), Now());
  }

  Process& process() { return *server_.process_; }
  absl::Time Now() const { return server_.job_.world->Now(); }

  template <typename T>
  Network::Call<T> Call(uint32_t shard, std::function<absl::StatusOr<T>(Shard&)> use) {
    Server* const target = server_.job_.servers[shard].get();
    return server_.job_.network->Start<T>(server_.process_, target == nullptr ? nullptr : target->process_,
                                          [target, run_id = run_id_, use = std::move(use)]() -> absl::StatusOr<T> {
                                            MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<Shard> served,
                                                                      target->shard_peer_.ServedRun(run_id));
                                            return use(*served);
                                          });
  }

  Network::Call<v1::SaveCheckpointResponse> StartSave(uint32_t shard, uint64_t version, const std::string& directory) {
    Server* const target = server_.job_.servers[shard].get();
    return Call<v1::SaveCheckpointResponse>(
        shard, [target, version, directory](Shard& served) -> absl::StatusOr<v1::SaveCheckpointResponse> {
          while (target->saving_ && target->process_->Sleep(absl::Milliseconds(10))) {
          }
          if (!target->process_->alive()) return absl::CancelledError("killed");
          target->saving_ = true;
          const absl::StatusOr<Shard::SavedFile> saved = served.SaveCheckpoint(version, directory);
          target->saving_ = false;
          MILLRACE_RETURN_IF_ERROR(saved.status());
          v1::SaveCheckpointResponse response;
          response.set_file(saved->file);
          response.set_bytes(saved->bytes);
          response.set_sha256(saved->sha256);
          return response;
        });
  }

  Server& server_;
  const uint64_t run_id_;
  bool cancelled_ = false;
};

// Listens in on what the checkpoint writer tells the coordinator.
class Server::Tap final : public CheckpointListener {
 public:
  explicit Tap(Server* server) : server_(*server) {}

  void Committed(uint64_t version, const std::string& optimizer_sha256) override {
    job().world->Trace([&] { return absl::StrCat("committed ", version); });
    job().committed = std::max(job().committed, version);
    job().world->Expect(optimizer_sha256 == job().reference->optimizer_sha256(version),
                        absl::StrCat("the optimizer state of committed version ", version, " has other bits"));
    server_.coordinator_->Committed(version, optimizer_sha256);
  }
  void CommitFailed(uint64_t version, const absl::Status& why) override {
    job().world->Trace([&] { return absl::StrCat("commit of ", version, " failed: ", why.ToString()); });
    server_.coordinator_->CommitFailed(version, why);
  }
  void Exported(uint64_t version, const std::string& weights_sha256) override {
    job().world->Expect(weights_sha256 == job().reference->weights_sha256(version),
                        absl::StrCat("exported version ", version, " has other bits"));
    server_.coordinator_->Exported(version, weights_sha256);
  }
  void ExportFailed(uint64_t version, const absl::Status& why) override {
    server_.coordinator_->ExportFailed(version, why);
  }
  void Settled(uint64_t version) override { server_.coordinator_->Settled(version); }

 private:
  Job& job() { return server_.job_; }
  Server& server_;
};

// The checkpointer's queue, with a fiber for its thread.
class Server::Queue final : public CheckpointQueue {
 public:
  Queue(Server* server, const v1::JobPlan& plan)
      : server_(*server),
        start_version_(plan.start_version()),
        writer_({.plan = plan,
                 .keep = server->job_.keep_checkpoints,
                 .metrics = server->job_.metrics,
                 .pause = [this](absl::Duration time) { server_.process_->Sleep(time); },
                 .export_servable = [this](const ExportOptions& options) { return Export(options); }},
                &*server->store_, std::make_unique<Fleet>(server, plan.run_id()), server->tap_.get()) {
    server_.queue_ = this;
    server_.process_->Spawn([this] {
      while (server_.process_->alive() && !stopping_) {
        if (tasks_.empty()) {
          server_.process_->Wait(absl::Seconds(5));
          continue;
        }
        const CheckpointTask task = std::move(tasks_.front());
        tasks_.pop_front();
        if (task.kind == CheckpointTask::kCommit) server_.job_.begun = std::max(server_.job_.begun, task.version);
        writer_.Run(task);
      }
      ended_ = true;
      server_.process_->Notify();
    });
  }
  // As the checkpointer's: once what is in progress has come to its end.
  ~Queue() override {
    Stop();
    server_.process_->Notify();
    server_.process_->Join(ended_);
    if (server_.queue_ == this) server_.queue_ = nullptr;
  }

  void Commit(uint64_t version, CheckpointRecord record) override {
    CheckChecksums(version, record.slot_checksums);
    Push({.kind = CheckpointTask::kCommit, .version = version, .record = std::move(record)});
  }
  void Export(uint64_t version, std::optional<v1::Evaluation> validation, std::optional<v1::Evaluation> test) override {
    Push({.kind = CheckpointTask::kExport,
          .version = version,
          .validation = std::move(validation),
          .test = std::move(test)});
  }
  void Skip(uint64_t version) override { Push({.kind = CheckpointTask::kSkip, .version = version}); }
  void NoteBest(const v1::Evaluation& validation) override {
    CheckpointTask task{.kind = CheckpointTask::kNoteBest, .version = validation.version()};
    task.validation = validation;
    Push(std::move(task));
  }
  void Stop() override {
    stopping_ = true;
    tasks_.clear();
    writer_.Stop();
  }

 private:
  // What goes with a checkpoint is what the steps since the one before must come to.
  void CheckChecksums(uint64_t version, const SlotChecksums& checksums) {
    World& world = *server_.job_.world;
    world.Expect(
        checksums.first_step <= std::max(server_.job_.committed, start_version_) && checksums.end_step() == version,
        absl::StrCat("the checksums of a step before version ", version, " are not recorded"));
    for (uint64_t step = checksums.first_step; step < checksums.end_step(); ++step) {
      world.Expect(std::ranges::equal(checksums.Of(step), server_.job_.reference->slot_checksums(step)),
                   absl::StrCat("other checksums of step ", step, " are recorded"));
    }
  }

  void Push(CheckpointTask task) {
    tasks_.push_back(std::move(task));
    server_.job_.world->Expect(tasks_.size() <= 6, "too many checkpoints are queued");
    server_.process_->Notify();
  }

  // What the model service would be given is checked here, not written.
  absl::StatusOr<ExportedServable> Export(const ExportOptions& options) {
    if (!server_.process_->Sleep(absl::Milliseconds(20))) return absl::CancelledError("killed");
    return ExportedServable{.directory = "", .weights_sha256 = WeightsSha256(options.parameters)};
  }

  Server& server_;
  const uint64_t start_version_;  // of the run
  std::deque<CheckpointTask> tasks_;
  bool stopping_ = false;
  bool ended_ = false;
  CheckpointWriter writer_;
};

Server::Server(Job* job, uint32_t shard)
    : job_(*job),
      index_(shard),
      incarnation_((uint64_t{job->world->Random(UINT32_MAX)} << 16) + shard + 1),
      process_(Process::Start(job->world, absl::StrCat("ps-", shard))),
      files_(job->disk->Mount(process_)) {
  shard_peer_.process = process_;
  if (shard == 0) {
    coordinator_peer_ = std::make_unique<CoordinatorPeer>();
    coordinator_peer_->process = process_;
    coordinator_peer_->slots = job->plan.spec().slots();
    tap_ = std::make_unique<Tap>(this);
  }
  process_->Spawn([this] {
    const auto call = [this](const v1::RegisterShardRequest& request) { return RegisterWithCoordinator(request); };
    const absl::Status status = index_ == 0 ? Coordinate() : Follow(call);
    if (!status.ok() && process_->alive()) ended_ = status;
  });
}

Server::~Server() {
  if (queue_ != nullptr) queue_->Stop();  // or the kill would be logged as a failure of the disk
  process_->Kill();
  job_.network->BreakAllOf(process_.get());
  if (coordinator_peer_ != nullptr) coordinator_peer_->coordinator = nullptr;
}

v1::RegisterShardRequest Server::Registration() const {
  v1::RegisterShardRequest request;
  request.set_shard(index_);
  request.set_num_shards(job_.num_shards);
  request.set_address(process_->name());
  request.set_incarnation(incarnation_);
  request.set_serving_run_id(run_id_);
  request.set_version(shard_peer_.shard == nullptr ? 0 : shard_peer_.shard->version());
  request.set_broken(std::string(broken_.message()));
  return request;
}

// --- The coordinator's process ---

absl::Status Server::Coordinate() {
  MILLRACE_ASSIGN_OR_RETURN(store_, CheckpointStore::Open(kOutputDirectory, *files_));
  MILLRACE_ASSIGN_OR_RETURN(RunStart start, FindStart());
  coordinator_ = std::make_unique<Coordinator>(
      Coordinator::Options{.num_shards = job_.num_shards,
                           .data_addresses = {"data"},
                           .clock = job_.world,
                           .metrics = job_.metrics,
                           .tick_interval = absl::InfiniteDuration(),
                           .limits = job_.limits,
                           .ask_visits = [this](const auto& plan, const auto& check) { AskVisits(plan, check); }});
  coordinator_peer_->coordinator = coordinator_.get();
  process_->Spawn([this] {
    while (process_->Sleep(job_.tick)) coordinator_->Tick();
  });
  MILLRACE_RETURN_IF_ERROR(coordinator_->Begin(
      job_.plan, std::move(start),
      [this](const v1::JobPlan& plan, const std::vector<v1::ShardInfo>&) {
        return std::make_unique<Queue>(this, plan);
      },
      [this] { return FindStart(); }));
  return Follow([this](const v1::RegisterShardRequest& request) { return coordinator_->RegisterShard(request); });
}

// The data service knows what should have been trained, and that is what was.
void Server::AskVisits(const v1::JobPlan& plan, const v1::VisitCheck& check) {
  v1::VisitCheck answer = check;
  for (uint64_t step = check.begin(); step < check.end(); ++step) {
    for (uint32_t slot = 0; slot < plan.spec().slots(); ++slot) {
      const v1::Batch batch = ToyBatch(plan, {v1::SPLIT_TRAIN, check.epoch(), step % plan.steps_per_epoch(), slot});
      answer.set_expected_samples(answer.expected_samples() + batch.samples());
      answer.set_expected_visits(answer.expected_visits() + batch.visits());
    }
  }
  job_.world->Expect(answer.visits() == answer.expected_visits() && answer.samples() == answer.expected_samples(),
                     absl::StrCat("steps ", check.begin(), " to ", check.end(), " did not train each sample once"));
  if (check.end() - check.begin() == plan.steps_per_epoch()) ++job_.epochs_checked;
  process_->Post(absl::Milliseconds(5), [this, answer] { coordinator_->VisitsExpected(answer); });
}

// What is found must be what was last committed, or what was being committed.
absl::StatusOr<RunStart> Server::FindStart() {
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<CheckpointManifest> newest, store_->FindNewest());
  if (!process_->alive()) return absl::CancelledError("killed");
  RunStart start;
  if (newest.has_value()) {
    MILLRACE_RETURN_IF_ERROR(CheckSameJob(*newest, job_.plan));
    start.version = newest->version;
    start.checkpoint_dir = store_->Directory(newest->version).string();
    start.validation = newest->validation;
    start.fingerprint = newest->fingerprint;
    start.visits = newest->visits;
    start.synchronous_again = IsSynchronousAgain(newest->plan.spec());
  }
  World& world = *job_.world;
  world.Trace([&] { return absl::StrCat("a run starts at version ", start.version); });
  world.Expect(start.version >= job_.committed, absl::StrCat("went back to version ", start.version,
                                                             ", though version ", job_.committed, " was committed"));
  world.Expect(start.version <= job_.begun, absl::StrCat("version ", start.version, " was never saved"));
  job_.committed = std::max(job_.committed, start.version);  // before it could be announced
  return start;
}

// --- Every shard's process ---

absl::StatusOr<v1::RegisterShardResponse> Server::RegisterWithCoordinator(const v1::RegisterShardRequest& request) {
  Server* const first = job_.servers[0].get();
  CoordinatorPeer* const peer = first == nullptr ? nullptr : first->coordinator_peer();
  const auto serve = [peer, request]() -> absl::StatusOr<v1::RegisterShardResponse> {
    if (peer->coordinator == nullptr) return absl::UnavailableError("the coordinator starts");
    return peer->coordinator->RegisterShard(request);
  };
  return job_.network->Start<v1::RegisterShardResponse>(process_, peer == nullptr ? nullptr : peer->process, serve)
      .Await(*process_, job_.world->Now() + kCallDeadline);
}

// As ParameterServer::Follow.
absl::Status Server::Follow(const RegisterCall& call) {
  Backoff backoff(kHeartbeatInterval, kRetryMax, job_.world->Random(1 << 30));
  while (process_->alive()) {
    const absl::StatusOr<v1::RegisterShardResponse> registered = call(Registration());
    if (!process_->alive()) break;
    if (registered.ok()) {
      backoff.Reset();
      if (registered->plan().run_id() == run_id_) {
        process_->Sleep(kHeartbeatInterval);
      } else {
        Serve(registered->plan(), registered->shard());
      }
      continue;
    }
    const absl::Status& status = registered.status();
    if (absl::IsInvalidArgument(status) || absl::IsAborted(status) || absl::IsFailedPrecondition(status)) {
      return status;
    }
    process_->Sleep(backoff.Next());
  }
  return absl::OkStatus();
}

// As ShardHost::Serve.
void Server::Serve(const v1::JobPlan& plan, const v1::ShardInfo& info) {
  const std::shared_ptr<Shard> ended = shard_peer_.shard;
  shard_peer_.EndRun();
  run_id_ = plan.run_id();
  broken_ = absl::OkStatus();
  std::shared_ptr<const Shard::Snapshot> kept;
  if (ended != nullptr) kept = ended->SnapshotOf(plan.start_version());
  const bool from_memory = kept != nullptr;
  absl::StatusOr<std::shared_ptr<Shard>> made = MakeShard(plan, info, std::move(kept));
  if (!process_->alive()) return;
  if (!made.ok()) {
    job_.world->Trace([&] { return absl::StrCat(process_->name(), " cannot serve: ", made.status().ToString()); });
    broken_ = made.status();
    return;
  }
  const std::shared_ptr<Shard>& shard = *made;
  const WeightsVersion loaded = shard->weights();
  CheckApplied(*shard, {loaded, loaded.values.size()});
  shard->OnApplied([this, of = shard.get()](const WeightsProgress& progress) { CheckApplied(*of, progress); });
  shard->OnBroken([this](const absl::Status& why) { job_.world->Violate(why.ToString()); });
  job_.world->Trace([&] {
    return absl::StrCat(process_->name(), " serves version ", shard->version(), from_memory ? " from memory" : "");
  });
  shard_peer_.Serve(shard);
}

absl::StatusOr<std::shared_ptr<Shard>> Server::MakeShard(const v1::JobPlan& plan, const v1::ShardInfo& info,
                                                         std::shared_ptr<const Shard::Snapshot> kept) {
  const Shard::Options options{.plan = plan,
                               .info = info,
                               .num_shards = job_.num_shards,
                               .metrics = job_.metrics,
                               .files = files_.get(),
                               .chunk_elements = kToyChunkElements};
  const std::vector<float> initial = ToyInitialWeights(plan);
  MILLRACE_ASSIGN_OR_RETURN(
      std::shared_ptr<Shard> shard,
      Shard::Create(options, std::span(initial).subspan(info.begin(), info.end() - info.begin())));
  if (kept != nullptr) {
    MILLRACE_RETURN_IF_ERROR(shard->Restore(std::move(kept)));
  } else if (!plan.checkpoint_dir().empty()) {
    MILLRACE_RETURN_IF_ERROR(shard->LoadCheckpoint(plan.checkpoint_dir()));
  }
  return shard;
}

// Every version that a shard makes or loads is that of the reference.
void Server::CheckApplied(const Shard& shard, const WeightsProgress& progress) {
  const uint64_t version = progress.weights.version;
  const std::span<const float> expected =
      std::span(job_.reference->weights(version)).subspan(shard.range().begin, progress.ready);
  const bool same = std::equal(expected.begin(), expected.end(), progress.weights.values.begin(), [](float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
  });
  job_.world->Trace(
      [&] { return absl::StrCat(process_->name(), " has version ", version, " up to ", progress.ready); });
  job_.world->Expect(same, absl::StrCat("shard ", index_, " has other weights of version ", version));
}

}  // namespace millrace::simulation
