#include "services/model/version_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/thread_priority.h"

namespace millrace {
namespace {

constexpr char kUnloadedMeanwhile[] = "it was unloaded meanwhile";

absl::Status Stopped() { return absl::UnavailableError("the model service is shutting down"); }

}  // namespace

VersionLoader::VersionLoader(Options options, LoadVersion load, ServingTable& table,
                             std::shared_ptr<ModelMetrics> metrics, const Clock& clock)
    : examiner_({.canary_set = std::exchange(options.canary_set, std::nullopt),
                 .canary_margin = options.canary_margin,
                 .same_signature = options.rollout.mode != RolloutOptions::Mode::kImmediate},
                std::move(load)),
      options_(std::move(options)),
      table_(table),
      metrics_(std::move(metrics)),
      clock_(clock),
      shadow_(options_.rollout.mode == RolloutOptions::Mode::kImmediate ? nullptr : std::make_shared<ShadowRunner>()) {}

VersionLoader::~VersionLoader() { Stop(); }

void VersionLoader::Start() {
  thread_ = std::thread([this] { Run(); });
}

void VersionLoader::Stop() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  if (shadow_ != nullptr) shadow_->Stop();  // it calls LookNow
  for (const PendingReload& reload : TakeReloads()) reload.done(Stopped());
}

absl::Status VersionLoader::repository_status() const {
  MutexLock lock(&mutex_);
  return repository_status_;
}

void VersionLoader::Pin(const std::string& model, uint64_t version) {
  table_.SetPinned(model, version);
  metrics_->SetPinned(model, version);
  LookNow();
}

void VersionLoader::LookNow() {
  MutexLock lock(&mutex_);
  look_now_ = true;
  changed_.SignalAll();
}

absl::Status VersionLoader::Unload(const std::string& model) {
  MILLRACE_RETURN_IF_ERROR(table_.Unload(model));
  LookNow();
  return absl::OkStatus();
}

void VersionLoader::Reload(const std::string& model, std::function<void(const absl::Status&)> done) {
  absl::Status fault;
  {
    MutexLock lock(&mutex_);
    if (stop_) {
      fault = Stopped();
    } else if (reloads_.size() >= kReloadsMax) {
      fault = absl::ResourceExhaustedError(absl::StrCat("the limit of ", kReloadsMax, " loads that wait is reached"));
    } else {
      table_.EndUnload(model);
      reloads_.push_back({.model = model, .done = std::move(done)});
      look_now_ = true;
      changed_.SignalAll();
      return;
    }
  }
  done(fault);
}

std::vector<VersionLoader::PendingReload> VersionLoader::TakeReloads() {
  MutexLock lock(&mutex_);
  return std::exchange(reloads_, {});
}

void VersionLoader::Run() {
  LowerThreadPriority();  // what serves goes first
  for (;;) {
    const bool tried = PollOnce();
    MutexLock lock(&mutex_);
    if (!stop_ && !tried && !look_now_) changed_.WaitWithTimeout(&mutex_, options_.poll_interval);
    look_now_ = false;
    if (stop_) return;
  }
}

bool VersionLoader::PollOnce() {
  const std::vector<PendingReload> reloads = TakeReloads();
  for (auto& [name, model] : models_) {
    NoteUnload(name, model);
    SettleRollout(name, model);
  }
  const absl::StatusOr<RepositoryListing> listing = ListRepository(options_.repository);
  const absl::Status status = listing.ok() && !listing->faults.empty() ? listing->faults.front() : listing.status();
  NoteRepository(status);
  for (auto& [name, model] : models_) ServeFromStandby(name, model, listing.ok() ? *listing : RepositoryListing());
  std::vector<ModelState> states;
  if (listing.ok()) states = Snapshot(*listing);
  std::map<std::string, absl::Status> reloaded;  // once each, however many ask
  for (const PendingReload& reload : reloads) {
    const auto [result, first] = reloaded.try_emplace(reload.model);
    if (first) result->second = ReloadNow(reload.model, status, states);
    reload.done(result->second);
  }
  if (!reloads.empty()) return listing.ok();
  std::optional<LoadAction> action = NextLoad(states, clock_.Now());
  if (!action) action = NextStandby(states, clock_.Now());
  if (!action) return false;
  models_[action->model].last_turn = ++turns_;
  (void)Load(*action);  // told in the table, the log and the metrics
  return true;
}

absl::Status VersionLoader::ReloadNow(const std::string& name, const absl::Status& repository,
                                      std::vector<ModelState>& states) {
  const auto state = std::find_if(states.begin(), states.end(), [&](const auto& it) { return it.model == name; });
  if (state == states.end()) {
    if (!repository.ok()) return repository;
    return absl::NotFoundError(absl::StrCat("model ", name, " is not in the repository"));
  }
  for (const auto& [version, _] : models_[name].failed) table_.Forget(name, version);
  models_[name].failed.clear();
  state->failed.clear();
  state->reload = true;
  if (const std::optional<LoadAction> action = NextLoad({&*state, 1}, clock_.Now())) return Load(*action);
  if (state->unloaded) return absl::FailedPreconditionError(absl::StrCat("model ", name, " is unloaded"));
  if (state->pinned != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("version ", state->pinned, " of model ", name, ", which is pinned, is not in the repository"));
  }
  return absl::NotFoundError(absl::StrCat("the repository has no version of model ", name, " from ", state->serving));
}

// Logs changes only: an outage of an hour is two lines.
void VersionLoader::NoteRepository(const absl::Status& status) {
  metrics_->SetRepositoryReadable(status.ok());
  MutexLock lock(&mutex_);
  if (status == repository_status_) return;
  if (status.ok()) {
    LogInfo("watching the repository", {{"repository", options_.repository.string()}});
  } else if (absl::IsNotFound(status)) {
    LogInfo("waiting for the repository", {{"repository", options_.repository.string()}});
  } else {
    LogWarning("cannot read the repository; what serves goes on serving", {{"error", status}});
  }
  repository_status_ = status;
}

std::vector<ModelState> VersionLoader::Snapshot(const RepositoryListing& listing) {
  std::vector<ModelState> states;
  for (const auto& entry : listing.models) {
    const std::string& name = entry.first;
    const std::vector<AvailableVersion>& versions = entry.second;
    Model& model = models_[name];
    // Failures of versions that are gone are of no further interest.
    std::erase_if(model.failed, [&](const auto& failed) {
      const bool there = std::any_of(versions.begin(), versions.end(),
                                     [&](const AvailableVersion& version) { return version.version == failed.first; });
      if (!there) table_.Forget(name, failed.first);
      return !there;
    });
    states.push_back({.model = name,
                      .available = versions,
                      .serving = model.serving,
                      .candidate = model.rollout == nullptr ? 0 : model.candidate.version,
                      .standby = table_.standby_versions(name),
                      .standby_wanted = table_.standby_max(),
                      .pinned = table_.pinned(name),
                      .failed = model.failed,
                      .unloaded = table_.unloaded(name),
                      .last_turn = model.last_turn});
  }
  return states;
}

void VersionLoader::NoteUnload(const std::string& name, Model& model) {
  if (model.serving == 0 || table_.serves(name)) return;
  if (model.rollout != nullptr) EndRollout(name, "ended", "");
  model.serving = 0;
  metrics_->SetActive(name, 0, 0);
}

void VersionLoader::ServeFromStandby(const std::string& name, const Model& model, const RepositoryListing& listing) {
  const uint64_t pinned = table_.pinned(name);
  if (pinned == 0 || pinned == model.serving) return;
  const std::shared_ptr<const LoadedVersion> standby = table_.FindStandby(name, pinned);
  if (standby == nullptr) return;
  if (const auto available = listing.models.find(name); available != listing.models.end()) {
    for (const AvailableVersion& version : available->second) {
      if (version.version == pinned && version.identity != standby->identity()) return;  // other files: loaded anew
    }
  }
  uint64_t before = 0;
  if (!Serve(standby, &before).ok()) return;  // unloaded: noted at the next look
  LogInfo("serving a version that stood by", {{"model", name}, {"version", pinned}, {"before", before}});
}

void VersionLoader::SettleRollout(const std::string& name, Model& model) {
  if (model.rollout == nullptr) return;
  const std::shared_ptr<const LoadedVersion> candidate = model.rollout->candidate();
  const uint64_t version = candidate->info().version;
  const uint64_t pinned = table_.pinned(name);
  const std::optional<RolloutVerdict> verdict = model.rollout->verdict();
  if (pinned == version || (pinned == 0 && verdict && verdict->promoted())) {
    const std::string why = pinned == version ? "pinned" : verdict->text;
    uint64_t before = 0;
    if (!Serve(candidate, &before).ok()) return;  // unloaded: noted at the next look
    metrics_->CountRollout(name, "promoted", "");
    LogInfo("promoted a candidate", {{"model", name}, {"version", version}, {"before", before}, {"why", why}});
  } else if (pinned != 0) {
    EndRollout(name, "ended", "");
  } else if (verdict) {
    RollBack(name, *verdict);
  }
}

absl::Status VersionLoader::Load(const LoadAction& action) {
  const uint64_t version = action.version.version;
  const bool by_pin = table_.pinned(action.model) == version;
  table_.SetLoading(action.model, version);
  const absl::Time start = clock_.Now();
  VersionExaminer::Result examined =
      examiner_.Load(VersionDirectory(options_.repository, action.model, version).string(), action.model, version);
  if (examined.load.status.ok() && !by_pin && !action.standby) {
    if (const auto live = table_.Find(action.model, 0); live.ok()) examiner_.Compare(**live, examined);
  }
  if (!examined.load.status.ok()) {
    Refuse(action, examined);
    return examined.load.status;
  }
  std::shared_ptr<VersionSeries> series = metrics_->AddVersion(action.model, version);
  if (examined.score) series->SetCanaryScore(*examined.score);
  const ModelInfo& info = examined.load.predictor->info();
  series->WatchDrift(info.classes, info.reference);
  return Accept(action, by_pin,
                janitor_.Adopt(std::make_unique<const LoadedVersion>(
                    std::move(examined.load.predictor), std::move(series), action.version.identity, examined.score)),
                start);
}

absl::Status VersionLoader::Accept(const LoadAction& action, bool by_pin, std::shared_ptr<const LoadedVersion> loaded,
                                   absl::Time start) {
  const uint64_t version = action.version.version;
  Model& model = models_[action.model];
  model.failed.erase(version);
  if (options_.warm) options_.warm(loaded);
  const absl::Duration took = clock_.Now() - start;
  metrics_->CountLoad(action.model, "loaded", "");
  metrics_->ObserveLoadTime(action.model, took);
  if (action.standby) {
    if (!table_.AddStandby(loaded)) return GiveUp(action.model, version, kUnloadedMeanwhile);
    LogInfo("a version stands by", {{"model", action.model}, {"version", version}, {"load_time", took}});
    return absl::OkStatus();
  }
  if (by_pin && table_.pinned(action.model) != version) {
    return GiveUp(action.model, version, absl::StrCat("version ", version, " was unpinned meanwhile"));
  }
  const bool try_first = shadow_ != nullptr && model.serving != 0 && model.serving != version;
  if (try_first && !by_pin) return StartRollout(action, loaded);
  uint64_t before = 0;
  MILLRACE_RETURN_IF_ERROR(Serve(loaded, &before));
  const ModelInfo& info = loaded->info();
  LogInfo("serving a new version", {{"model", action.model},
                                    {"version", version},
                                    {"before", before},
                                    {"accuracy", info.accuracy},
                                    {"digest", info.digest},
                                    {"load_time", took}});
  return absl::OkStatus();
}

absl::Status VersionLoader::Serve(const std::shared_ptr<const LoadedVersion>& version, uint64_t* before) {
  const ModelInfo& info = version->info();
  Model& model = models_[info.model];
  if (model.rollout != nullptr && model.rollout->candidate() != version) EndRollout(info.model, "replaced", "");
  if (!table_.Publish(version)) return GiveUp(info.model, info.version, kUnloadedMeanwhile);
  model.rollout = nullptr;
  metrics_->SetActive(info.model, info.version, info.step);
  *before = std::exchange(model.serving, info.version);
  return absl::OkStatus();
}

absl::Status VersionLoader::GiveUp(const std::string& model, uint64_t version, const std::string& why) {
  table_.Forget(model, version);
  return absl::FailedPreconditionError(absl::StrCat("model ", model, ": ", why));
}

absl::Status VersionLoader::StartRollout(const LoadAction& action, const std::shared_ptr<const LoadedVersion>& loaded) {
  Model& model = models_[action.model];
  SettleRollout(action.model, model);  // a verdict may have come while the newer version was loading
  if (model.rollout != nullptr) EndRollout(action.model, "replaced", "");
  model.rollout = std::make_shared<Rollout>(loaded, options_.rollout, shadow_, metrics_, [this] { LookNow(); });
  model.candidate = action.version;
  if (!table_.StartRollout(model.rollout)) {
    model.rollout = nullptr;
    return GiveUp(action.model, action.version.version, kUnloadedMeanwhile);
  }
  metrics_->SetCandidate(action.model, action.version.version);
  LogInfo("trying a candidate", {{"model", action.model},
                                 {"version", action.version.version},
                                 {"serving", model.serving},
                                 {"rows", options_.rollout.limits.rows},
                                 {"digest", loaded->info().digest}});
  return absl::OkStatus();
}

void VersionLoader::EndRollout(const std::string& name, const std::string& result, const std::string& reason) {
  Model& model = models_[name];
  model.rollout = nullptr;
  metrics_->CountRollout(name, result, reason);
  metrics_->SetCandidate(name, 0);
  table_.EndRollout(name);
  LogInfo("a rollout has ended", {{"model", name}, {"version", model.candidate.version}, {"result", result}});
}

void VersionLoader::RollBack(const std::string& name, const RolloutVerdict& verdict) {
  Model& model = models_[name];
  EndRollout(name, "rolled_back", std::string(Name(verdict.reason)));
  const std::string text = absl::StrCat("rolled back: ", verdict.text);
  model.failed[model.candidate.version] = {
      .identity = model.candidate.identity, .retry_at = absl::InfiniteFuture(), .by_comparison = true};
  table_.SetRefused(name, model.candidate.version, text, true);
  LogError("refused a candidate",
           {{"model", name}, {"version", model.candidate.version}, {"reason", text}, {"serving", model.serving}});
}

void VersionLoader::Refuse(const LoadAction& action, const VersionExaminer::Result& examined) {
  const LoadResult& result = examined.load;
  const uint64_t version = action.version.version;
  Model& model = models_[action.model];
  const auto earlier = model.failed.find(version);
  const bool same = earlier != model.failed.end() && earlier->second.identity == action.version.identity;
  const int attempts = same ? earlier->second.attempts + 1 : 1;
  const bool refused = !result.refusal.empty();
  model.failed[version] = {.identity = action.version.identity,
                           .retry_at = refused ? absl::InfiniteFuture() : clock_.Now() + RetryDelay(attempts),
                           .attempts = attempts,
                           .by_comparison = examined.by_comparison};

  table_.SetRefused(action.model, version, std::string(result.status.message()), examined.by_comparison);
  if (action.standby) {  // nobody waits for it: no alarm
    LogInfo("a version cannot stand by", {{"model", action.model}, {"version", version}, {"error", result.status}});
    return;
  }
  metrics_->CountLoad(action.model, refused ? "refused" : "failed", result.refusal);
  LogError(refused ? "refused a version" : "could not load a version, will try again", {{"model", action.model},
                                                                                        {"version", version},
                                                                                        {"reason", result.refusal},
                                                                                        {"error", result.status},
                                                                                        {"serving", model.serving}});
}

}  // namespace millrace
