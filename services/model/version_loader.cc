#include "services/model/version_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace millrace {
namespace {

absl::Status Stopped() { return absl::UnavailableError("the model service is shutting down"); }

}  // namespace

VersionLoader::VersionLoader(Options options, LoadVersion load, ServingTable& table,
                             std::shared_ptr<ModelMetrics> metrics, const Clock& clock)
    : options_(std::move(options)),
      load_(std::move(load)),
      table_(table),
      metrics_(std::move(metrics)),
      clock_(clock) {}

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
  for (const PendingReload& reload : TakeReloads()) reload.done(Stopped());
}

absl::Status VersionLoader::repository_status() const {
  MutexLock lock(&mutex_);
  return repository_status_;
}

void VersionLoader::Pin(const std::string& model, uint64_t version) {
  table_.SetPinned(model, version);
  MutexLock lock(&mutex_);
  look_now_ = true;
  changed_.SignalAll();
}

void VersionLoader::Reload(const std::string& model, std::function<void(const absl::Status&)> done) {
  table_.EndUnload(model);
  absl::Status fault;
  {
    MutexLock lock(&mutex_);
    if (stop_) {
      fault = Stopped();
    } else if (reloads_.size() >= kReloadsMax) {
      fault = absl::ResourceExhaustedError(absl::StrCat("the limit of ", kReloadsMax, " loads that wait is reached"));
    } else {
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
  const absl::StatusOr<RepositoryListing> listing = ListRepository(options_.repository);
  const absl::Status status = listing.ok() && !listing->faults.empty() ? listing->faults.front() : listing.status();
  NoteRepository(status);
  std::vector<ModelState> states;
  if (listing.ok()) states = Snapshot(*listing);
  std::map<std::string, absl::Status> reloaded;  // once each, however many ask
  for (const PendingReload& reload : reloads) {
    const auto [result, first] = reloaded.try_emplace(reload.model);
    if (first) result->second = ReloadNow(reload.model, status, states);
    reload.done(result->second);
  }
  if (!reloads.empty()) return listing.ok();
  const std::optional<LoadAction> action = NextLoad(states, clock_.Now());
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
    if (model.serving != 0 && !table_.serves(name)) {
      model.serving = 0;  // unloaded
      metrics_->SetActive(name, 0, 0);
    }
    states.push_back({.model = name,
                      .available = versions,
                      .serving = model.serving,
                      .pinned = table_.pinned(name),
                      .failed = model.failed,
                      .unloaded = table_.unloaded(name),
                      .last_turn = model.last_turn});
  }
  return states;
}

absl::Status VersionLoader::Load(const LoadAction& action) {
  const uint64_t version = action.version.version;
  table_.SetLoading(action.model, version);
  const absl::Time start = clock_.Now();
  LoadResult result = load_(VersionDirectory(options_.repository, action.model, version).string());
  if (result.status.ok()) {
    const ModelInfo& info = result.predictor->info();
    if (info.model != action.model || info.version != version) {
      result.status = absl::FailedPreconditionError(
          absl::StrCat("misplaced: its manifest says model ", info.model, " version ", info.version));
      result.refusal = "misplaced";
    }
  }
  if (result.status.ok()) return Accept(action, std::move(result.predictor), start);
  Refuse(action, result);
  return result.status;
}

absl::Status VersionLoader::Accept(const LoadAction& action, std::unique_ptr<const Predictor> predictor,
                                   absl::Time start) {
  const uint64_t version = action.version.version;
  Model& model = models_[action.model];
  model.failed.erase(version);

  std::shared_ptr<const LoadedVersion> loaded = janitor_.Adopt(
      std::make_unique<const LoadedVersion>(std::move(predictor), metrics_->AddVersion(action.model, version)));
  if (options_.warm) options_.warm(loaded);
  if (!table_.Publish(loaded)) {
    table_.Forget(action.model, version);
    return absl::FailedPreconditionError(absl::StrCat("model ", action.model, " was unloaded meanwhile"));
  }
  const uint64_t before = std::exchange(model.serving, version);
  const absl::Duration took = clock_.Now() - start;
  const ModelInfo& info = loaded->info();
  metrics_->CountLoad(action.model, "loaded", "");
  metrics_->ObserveLoadTime(action.model, took);
  metrics_->SetActive(action.model, version, info.step);
  LogInfo("serving a new version", {{"model", action.model},
                                    {"version", version},
                                    {"before", before},
                                    {"accuracy", info.accuracy},
                                    {"digest", info.digest},
                                    {"load_time", took}});
  return absl::OkStatus();
}

void VersionLoader::Refuse(const LoadAction& action, const LoadResult& result) {
  const uint64_t version = action.version.version;
  Model& model = models_[action.model];
  const auto earlier = model.failed.find(version);
  const bool same = earlier != model.failed.end() && earlier->second.identity == action.version.identity;
  const int attempts = same ? earlier->second.attempts + 1 : 1;
  const bool refused = !result.refusal.empty();
  model.failed[version] = {.identity = action.version.identity,
                           .retry_at = refused ? absl::InfiniteFuture() : clock_.Now() + RetryDelay(attempts),
                           .attempts = attempts};

  metrics_->CountLoad(action.model, refused ? "refused" : "failed", result.refusal);
  table_.SetRefused(action.model, version, std::string(result.status.message()));
  LogError(refused ? "refused a version" : "could not load a version, will try again", {{"model", action.model},
                                                                                        {"version", version},
                                                                                        {"reason", result.refusal},
                                                                                        {"error", result.status},
                                                                                        {"serving", model.serving}});
}

}  // namespace millrace
