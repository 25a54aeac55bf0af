#include "tests/simulation/simulation.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/parameter_server/schedule.h"
#include "services/worker/worker_metrics.h"
#include "tests/simulation/servers.h"
#include "tests/simulation/worker.h"

namespace millrace::simulation {
namespace {

constexpr uint32_t kWorkersMax = 5;
// Once the faults have stopped: time for every lease to be late, for every back-off and for what is left of the job.
constexpr absl::Duration kEnough = absl::Minutes(2);
constexpr uint64_t kEventsMax = 300'000;
constexpr absl::Duration kSupervision = absl::Milliseconds(500);
// Nobody has reported anything for so long: then the status must say what is waited for.
constexpr absl::Duration kSilence = absl::Seconds(2);

v1::JobPlan RandomPlan(World& world) {
  v1::JobPlan plan;
  v1::JobSpec& spec = *plan.mutable_spec();
  spec.set_model_name("toy");
  spec.set_architecture("toy");
  spec.set_slots(1 + world.Random(world.Chance(0.5) ? 4 : 11));
  spec.set_batch_size(1 + world.Random(20));
  spec.set_epochs(1 + world.Random(3));
  spec.set_seed(world.Random(1 << 30));
  spec.set_checkpoint_steps(world.Random(4));
  spec.set_evaluation_batch_size(1 + world.Random(8));
  v1::OptimizerSpec& optimizer = *spec.mutable_optimizer();
  if (world.Chance(0.5)) {
    optimizer.set_kind(v1::OPTIMIZER_KIND_SGD);
    optimizer.set_momentum(world.Chance(0.5) ? 0.9 : 0);
  } else {
    optimizer.set_kind(v1::OPTIMIZER_KIND_ADAM);
    optimizer.set_beta1(0.9);
    optimizer.set_beta2(0.999);
    optimizer.set_epsilon(1e-7);
  }
  optimizer.set_learning_rate(0.05);
  if (world.Chance(0.2)) {
    constexpr std::array kNarrow = {v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_FLOAT16, v1::NUMBER_FORMAT_MXINT8};
    spec.set_wire(kNarrow[world.Random(kNarrow.size())]);
  }
  if (world.Chance(0.3)) spec.mutable_asynchrony()->set_staleness(1 + world.Random(3));
  v1::DatasetInfo& dataset = *plan.mutable_dataset();
  dataset.set_name("toy");
  dataset.set_fingerprint("0123456789abcdef");
  dataset.set_train_count(1 + world.Random(4 * spec.batch_size()));
  dataset.set_validation_count(world.Random(16));
  dataset.set_test_count(world.Random(16));
  spec.set_validation_count(static_cast<uint32_t>(dataset.validation_count()));
  plan.set_parameter_count(64 + world.Random(3 * 64));
  plan.set_steps_per_epoch(StepsPerEpoch(dataset.train_count(), spec.batch_size()));
  plan.set_total_steps(plan.steps_per_epoch() * spec.epochs());
  plan.set_output_dir(kOutputDirectory);
  return plan;
}

Ledger::Limits RandomLimits(World& world) {
  Ledger::Limits limits;
  limits.lease_shortest = world.Between(absl::Milliseconds(200), absl::Seconds(2));
  limits.lease_first = world.Between(absl::Seconds(1), absl::Seconds(5));
  limits.silence = world.Between(absl::Seconds(1), absl::Seconds(3));
  if (world.Chance(0.3)) limits.backup_workers = 1 + world.Random(2);
  return limits;
}

// The same job under one seed's faults.
class Simulation {
 public:
  Simulation(const SimulationOptions& options, StackPool* stacks, Metrics* metrics, const WorkerMetrics* worker_metrics)
      : world_(options.seed, stacks, options.trace),
        network_(&world_),
        disk_(&world_),
        worker_metrics_(*worker_metrics),
        plan_(RandomPlan(world_)),
        reference_(plan_),
        job_{.world = &world_,
             .network = &network_,
             .disk = &disk_,
             .metrics = metrics,
             .reference = &reference_,
             .plan = plan_,
             .num_shards = 1 + world_.Random(static_cast<uint32_t>((plan_.parameter_count() + 63) / 64)),
             .limits = RandomLimits(world_),
             .tick = world_.Between(absl::Milliseconds(100), absl::Milliseconds(400)),
             .keep_checkpoints = 1 + world_.Random(3),
             .servers = {}} {
    job_.servers.resize(job_.num_shards);
    workers_.resize(kWorkersMax);
  }

  ~Simulation() {
    workers_.clear();
    job_.servers.clear();
  }

  SimulationResult Run() {
    world_.Trace([&] {
      return absl::StrCat("plan: ", plan_.total_steps(), " steps of ", plan_.spec().slots(), " slots, ",
                          plan_.parameter_count(), " parameters on ", job_.num_shards, " shards; ",
                          plan_.ShortDebugString());
    });
    for (uint32_t shard = 0; shard < job_.num_shards; ++shard) StartServerLater(shard);
    const uint32_t workers = 1 + world_.Random(3);
    for (uint32_t worker = 0; worker < workers; ++worker) StartWorkerLater(worker);
    PlanFaults();
    Supervise();
    const absl::Time start = world_.Now();
    while (!over_ && world_.violation().empty() && world_.Step()) {
      if (world_.Now() > faults_end_ + kEnough) {
        world_.Violate(absl::StrCat("not done in time: ", Describe()));
      } else if (world_.events() > kEventsMax) {
        world_.Violate(absl::StrCat("too much ado: ", Describe()));
      }
    }
    result_.violation = world_.violation();
    result_.events = world_.events();
    result_.digest = world_.digest();
    result_.seconds = absl::ToDoubleSeconds(world_.Now() - start);
    result_.disk_failures = static_cast<uint32_t>(disk_.failed_calls());
    return result_;
  }

 private:
  // --- Starting and ending processes ---

  void StartServerLater(uint32_t shard) {
    const uint64_t life = ++server_lives_;
    starting_servers_[shard] = life;
    world_.Post(world_.Between(absl::ZeroDuration(), absl::Milliseconds(500)), [this, shard, life] {
      if (starting_servers_[shard] != life) return;
      starting_servers_[shard] = 0;
      job_.servers[shard] = std::make_unique<Server>(&job_, shard);
    });
  }

  void KillServer(uint32_t shard) {
    world_.Trace([&] { return absl::StrCat("kill ps-", shard); });
    ++result_.server_kills;
    job_.servers[shard].reset();
    starting_servers_[shard] = 0;
  }

  void RestartAllServers(bool power_failure) {
    for (uint32_t shard = 0; shard < job_.num_shards; ++shard) KillServer(shard);
    if (power_failure) {
      world_.Trace([] { return std::string("power failure"); });
      ++result_.power_failures;
      disk_.PowerFailure();
    }
    for (uint32_t shard = 0; shard < job_.num_shards; ++shard) StartServerLater(shard);
  }

  void StartWorkerLater(uint32_t number) {
    world_.Post(world_.Between(absl::ZeroDuration(), absl::Seconds(1)), [this, number] {
      if (workers_[number] != nullptr) return;
      workers_[number] = std::make_unique<SimulatedWorker>(&job_, &data_, &worker_metrics_, number);
    });
  }

  void KillWorker(uint32_t number) {
    world_.Trace([&] { return absl::StrCat("kill worker-", number); });
    ++result_.worker_kills;
    workers_[number].reset();
  }

  // --- Faults ---

  // Each seed has its own kinds of faults, its own pace and its own length of time for them.
  void PlanFaults() {
    if (world_.Chance(0.05)) return;  // a quiet run
    faults_end_ = world_.Now() + world_.Between(absl::Seconds(1), absl::Seconds(12));
    const auto draw = [this](double probability) { return world_.Chance(probability); };
    if (draw(0.6)) kinds_.push_back(&Simulation::LoseWorker);
    if (draw(0.5)) kinds_.push_back(&Simulation::PauseProcess);
    if (draw(0.5)) kinds_.push_back(&Simulation::BreakStreams);
    if (draw(0.3)) kinds_.push_back(&Simulation::SlowNetwork);
    if (draw(0.3)) kinds_.push_back(&Simulation::SlowWorker);
    if (draw(0.3)) kinds_.push_back(&Simulation::DrainWorker);
    if (draw(0.5)) kinds_.push_back(&Simulation::AddWorker);
    if (draw(0.3)) kinds_.push_back(&Simulation::LoseDataService);
    if (draw(0.4)) kinds_.push_back(&Simulation::LoseAllServers);
    if (draw(0.3)) kinds_.push_back(&Simulation::LoseServer);
    if (draw(0.3)) kinds_.push_back(&Simulation::FillDisk);
    if (kinds_.empty()) kinds_.push_back(&Simulation::LoseWorker);
    network_.conditions.delay = world_.Between(absl::Milliseconds(1), absl::Milliseconds(40));
    if (draw(0.4)) network_.conditions.duplicate_chance = 0.1;
    if (draw(0.3)) network_.conditions.break_chance = 0.005;
    if (draw(0.3)) network_.conditions.call_loss_chance = 0.1;
    if (draw(0.3)) network_.conditions.notice = absl::Seconds(4);
    if (draw(0.2)) disk_.SetFailures(0.03);
    pace_ = world_.Between(absl::Milliseconds(100), absl::Seconds(2));
    NextFault();
    world_.Post(faults_end_ - world_.Now(), [this] { StopFaults(); });
  }

  void NextFault() {
    world_.Post(world_.Between(absl::ZeroDuration(), pace_ * 2), [this] {
      if (world_.Now() >= faults_end_) return;
      (this->*kinds_[world_.Random(static_cast<uint32_t>(kinds_.size()))])();
      NextFault();
    });
  }

  // For a while; at the latest until the faults stop.
  void Later(absl::Duration least, absl::Duration most, std::function<void()> event) {
    world_.Post(std::min(world_.Between(least, most), faults_end_ - world_.Now()), std::move(event));
  }

  void StopFaults() {
    world_.Trace([] { return std::string("the faults stop"); });
    network_.conditions = Conditions();
    disk_.SetFailures(0);
    disk_.SetFull(false);
    data_ = DataService();
    for (const auto& server : job_.servers) {
      if (server != nullptr) server->process().Continue();
    }
    for (const auto& worker : workers_) {
      if (worker == nullptr) continue;
      worker->process().Continue();
      worker->SetSlowness(1);
    }
    for (uint32_t shard = 0; shard < job_.num_shards; ++shard) {
      if (job_.servers[shard] == nullptr && starting_servers_[shard] == 0) StartServerLater(shard);
    }
    StartWorkerLater(0);
  }

  SimulatedWorker* AnyWorker(uint32_t* number = nullptr) {
    std::vector<uint32_t> there;
    for (uint32_t i = 0; i < workers_.size(); ++i) {
      if (workers_[i] != nullptr) there.push_back(i);
    }
    if (there.empty()) return nullptr;
    const uint32_t drawn = there[world_.Random(static_cast<uint32_t>(there.size()))];
    if (number != nullptr) *number = drawn;
    return workers_[drawn].get();
  }

  void LoseWorker() {
    uint32_t number = 0;
    if (AnyWorker(&number) == nullptr) return;
    KillWorker(number);
    Later(absl::ZeroDuration(), absl::Seconds(5), [this, number] { StartWorkerLater(number); });
  }

  void PauseProcess() {
    std::shared_ptr<Process> process;
    Server* const server = job_.servers[world_.Random(job_.num_shards)].get();
    SimulatedWorker* const worker = AnyWorker();
    if (server != nullptr && world_.Chance(0.3)) {
      process = server->process().shared_from_this();
    } else if (worker != nullptr) {
      process = worker->process().shared_from_this();
    }
    if (process == nullptr) return;
    world_.Trace([&] { return absl::StrCat("stop ", process->name()); });
    ++result_.pauses;
    process->Stop();
    Later(absl::Milliseconds(50), absl::Seconds(6), [this, process] {
      world_.Trace([&] { return absl::StrCat("continue ", process->name()); });
      process->Continue();
    });
  }

  void BreakStreams() {
    world_.Trace([] { return std::string("break streams"); });
    for (uint32_t i = 0; i <= world_.Random(3); ++i) network_.BreakOne();
    ++result_.broken_streams;
  }

  void SlowNetwork() {
    const absl::Duration usual = network_.conditions.delay;
    if (usual > absl::Milliseconds(100)) return;
    network_.conditions.delay = world_.Between(absl::Milliseconds(200), absl::Seconds(2));
    Later(absl::Milliseconds(100), absl::Seconds(3), [this, usual] { network_.conditions.delay = usual; });
  }

  void SlowWorker() {
    if (SimulatedWorker* const worker = AnyWorker()) worker->SetSlowness(world_.Chance(0.3) ? 1 : 50);
  }

  void DrainWorker() {
    SimulatedWorker* const worker = AnyWorker();
    if (worker == nullptr) return;
    world_.Trace([&] { return absl::StrCat("drain ", worker->process().name()); });
    worker->Drain();
  }

  void AddWorker() { StartWorkerLater(world_.Random(kWorkersMax)); }

  void LoseDataService() {
    data_.up = false;
    Later(absl::Milliseconds(100), absl::Seconds(4), [this] { data_.up = true; });
  }

  void LoseAllServers() { RestartAllServers(world_.Chance(0.5)); }

  // One of them, with its weights, or the coordinator.
  void LoseServer() {
    const uint32_t shard = world_.Random(job_.num_shards);
    if (job_.servers[shard] == nullptr) return;
    KillServer(shard);
    Later(absl::ZeroDuration(), absl::Seconds(2), [this, shard] {
      if (job_.servers[shard] == nullptr && starting_servers_[shard] == 0) StartServerLater(shard);
    });
  }

  void FillDisk() {
    disk_.SetFull(true);
    Later(absl::Milliseconds(100), absl::Seconds(4), [this] { disk_.SetFull(false); });
  }

  // --- Whoever starts processes again, and looks at what is said about the job ---

  void Supervise() {
    world_.Post(kSupervision, [this] {
      LookAtWorkers();
      LookAtServers();
      Supervise();
    });
  }

  void LookAtWorkers() {
    for (uint32_t number = 0; number < workers_.size(); ++number) {
      if (workers_[number] == nullptr || !workers_[number]->ended()) continue;
      const absl::Status status = workers_[number]->status();
      // The job failed, or the worker's place was taken by another connection of its own.
      world_.Expect(status.ok() || absl::IsAborted(status), absl::StrCat("a worker ended: ", status.ToString()));
      workers_[number].reset();
      StartWorkerLater(number);
    }
  }

  void LookAtServers() {
    for (uint32_t shard = 1; shard < job_.num_shards; ++shard) {
      Server* const server = job_.servers[shard].get();
      if (server == nullptr || server->ended().ok()) continue;
      // A message of an earlier life came after this one's first: it is taken for the newer one.
      world_.Expect(absl::IsAborted(server->ended()), absl::StrCat("a shard ended: ", server->ended().ToString()));
      world_.Trace([&] { return absl::StrCat("ps-", shard, " ended: ", server->ended().ToString()); });
      KillServer(shard);
      StartServerLater(shard);
    }
    Server* const first = job_.servers[0].get();
    if (first == nullptr || !first->process().running()) return;
    if (!first->ended().ok()) {
      world_.Expect(disk_.failed_calls() > 0 && !absl::IsDataLoss(first->ended()),
                    absl::StrCat("the coordinator ended: ", first->ended().ToString()));
      return RestartAllServers(false);
    }
    const CoordinatorPeer& peer = *first->coordinator_peer();
    if (peer.coordinator == nullptr) return;
    const v1::JobStatus status = peer.coordinator->GetStatus();
    if (status.state() == v1::JobStatus::STATE_FAILED) {
      world_.Trace([&] { return absl::StrCat("the job failed: ", status.failure()); });
      world_.Expect(disk_.failed_calls() > 0, absl::StrCat("the job failed: ", status.failure()));
      return RestartAllServers(false);
    }
    CheckStatus(peer, status);
    CountRecoveries(status);
    if (status.state() == v1::JobStatus::STATE_DONE) Finish(status);
  }

  void CheckStatus(const CoordinatorPeer& peer, const v1::JobStatus& status) {
    if (status.version() != last_version_ || status.state() != last_state_) {
      last_version_ = status.version();
      last_state_ = status.state();
      last_change_ = world_.Now();
    }
    const bool quiet = world_.Now() - std::max(peer.last_progress, last_change_) > kSilence;
    const bool done = status.state() == v1::JobStatus::STATE_DONE;
    world_.Expect(done || !quiet || !status.waiting_for().empty(), "the job waits and does not say for what");
    world_.Expect(status.checksum_mismatches() == 0, "a slot was computed with two results");
    for (const v1::Evaluation& evaluation : status.validation()) {
      CheckEvaluation({v1::Lease::KIND_VALIDATION, evaluation.version()}, evaluation);
    }
  }

  void CountRecoveries(const v1::JobStatus& status) {
    if (!status.has_plan() || status.plan().run_id() == last_run_) return;
    if (last_run_ != 0) ++result_.restarts;
    last_run_ = status.plan().run_id();
  }

  void CheckEvaluation(const RoundId& round, const v1::Evaluation& evaluation) {
    const v1::Evaluation expected = MakeEvaluation(plan_, round, reference_.evaluation(round));
    world_.Expect(evaluation.samples() == expected.samples() && evaluation.loss() == expected.loss() &&
                      evaluation.accuracy() == expected.accuracy(),
                  absl::StrCat(RoundName(round), " has another result"));
  }

  void Finish(const v1::JobStatus& status) {
    over_ = true;
    const uint64_t last = plan_.total_steps();
    uint64_t samples = 0;
    for (uint64_t step = status.plan().start_version(); step < last; ++step) samples += StepSamples(plan_, step);
    world_.Expect(status.version() == last, "done before the last step");
    // Steps that were made again after a recovery count again.
    const bool exact = status.recovery_count() == 0;
    world_.Expect(exact ? status.trained_samples() == samples : status.trained_samples() >= samples,
                  absl::StrCat(status.trained_samples(), " samples were counted instead of ", samples));
    // Asked for when they are complete; again when they are made again.
    world_.Expect(job_.epochs_checked >= plan_.spec().epochs(), "the visits of an epoch were not checked");
    world_.Expect(status.visit_mismatches() == 0, "visits differ");
    const bool validated = plan_.dataset().validation_count() > 0;
    world_.Expect(!validated || status.validation_size() == static_cast<int>(plan_.spec().epochs()),
                  "an epoch was not validated, or twice");
    if (plan_.dataset().test_count() > 0) {
      CheckEvaluation({v1::Lease::KIND_TEST, last}, status.test());
      // Given up if its checkpoint could not be written.
      if (status.has_best_test()) {
        CheckEvaluation({v1::Lease::KIND_TEST, status.best().version()}, status.best_test());
      }
    }
    world_.Expect(status.committed_version() == last && job_.committed == last, "the last version is not committed");
    world_.Expect(status.exported_version() == last, "the last version is not exported");
    world_.Expect(status.weights_sha256() == reference_.weights_sha256(last), "the final weights have other bits");
    result_.regranted_leases = status.regranted_leases();
    result_.duplicate_results = status.duplicate_results();
  }

  std::string Describe() {
    std::string text;
    Server* const first = job_.servers[0].get();
    if (first != nullptr && first->coordinator_peer()->coordinator != nullptr) {
      const v1::JobStatus status = first->coordinator_peer()->coordinator->GetStatus();
      absl::StrAppend(&text, v1::JobStatus::State_Name(status.state()), " at version ", status.version(), " of ",
                      plan_.total_steps(), ", waiting for ", status.waiting_for());
    }
    for (const auto& server : job_.servers) {
      if (server != nullptr && server->shard_peer().shard != nullptr) {
        absl::StrAppend(&text, "; ", server->process().name(), " waits for ", server->shard_peer().shard->WaitingFor());
      }
    }
    return text;
  }

  World world_;
  Network network_;
  Disk disk_;
  DataService data_;
  const WorkerMetrics& worker_metrics_;
  const v1::JobPlan plan_;
  const Reference reference_;
  Job job_;
  std::vector<std::unique_ptr<SimulatedWorker>> workers_;  // null while a process is down
  std::map<uint32_t, uint64_t> starting_servers_;          // which life is on its way; 0 for none
  uint64_t server_lives_ = 0;

  absl::Time faults_end_ = world_.Now();
  absl::Duration pace_;
  std::vector<void (Simulation::*)()> kinds_;

  uint64_t last_run_ = 0;
  uint64_t last_version_ = 0;
  v1::JobStatus::State last_state_ = v1::JobStatus::STATE_UNSPECIFIED;
  absl::Time last_change_ = world_.Now();
  bool over_ = false;
  SimulationResult result_;
};

}  // namespace

struct Simulator::Kept {
  StackPool stacks;
  Metrics metrics{"simulation"};
  WorkerMetrics worker_metrics{metrics};
};

Simulator::Simulator() : kept_(std::make_unique<Kept>()) {}
Simulator::~Simulator() = default;

SimulationResult Simulator::Run(const SimulationOptions& options) {
  return Simulation(options, &kept_->stacks, &kept_->metrics, &kept_->worker_metrics).Run();
}

}  // namespace millrace::simulation
