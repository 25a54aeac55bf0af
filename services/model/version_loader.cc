#include "services/model/version_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace millrace {
namespace {

constexpr char kWorse[] = "worse";  // than what serves, on the canary set; a metric label

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
  absl::StatusOr<RepositoryListing> listing = ListRepository(options_.repository);
  if (!listing.ok()) {
    NoteRepository(listing.status());
    return false;
  }
  NoteRepository(listing->faults.empty() ? absl::OkStatus() : listing->faults.front());
  const std::vector<ModelState> states = Snapshot(*listing);
  const std::optional<LoadAction> action = NextLoad(states, clock_.Now());
  if (!action) return false;
  models_[action->model].last_turn = ++turns_;
  Load(*action);
  return true;
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
                      .pinned = table_.pinned(name),
                      .failed = model.failed,
                      .last_turn = model.last_turn});
  }
  return states;
}

void VersionLoader::Load(const LoadAction& action) {
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
  std::optional<CanaryScore> score;
  if (result.status.ok() && options_.canary_set) Compare(action, result, score);
  if (!result.status.ok()) return Refuse(action, result);
  std::shared_ptr<VersionSeries> series = metrics_->AddVersion(action.model, version);
  if (score) series->SetCanaryScore(*score);
  Accept(action,
         janitor_.Adopt(std::make_unique<const LoadedVersion>(std::move(result.predictor), std::move(series), score)),
         start);
}

void VersionLoader::Compare(const LoadAction& action, LoadResult& result, std::optional<CanaryScore>& score) {
  const absl::StatusOr<std::optional<CanaryScore>> measured = options_.canary_set->Measure(*result.predictor);
  if (!measured.ok()) {
    result.status =
        absl::Status(measured.status().code(), absl::StrCat("on the canary set: ", measured.status().message()));
    return;
  }
  score = *measured;
  if (!score) {
    LogWarning("the canary set does not fit the model, and says nothing about it", {{"model", action.model}});
    return;
  }
  const auto live = table_.Find(action.model, 0);
  if (!live.ok() || !(*live)->canary_score() || table_.pinned(action.model) == action.version.version) return;
  result.status = CheckNotWorse(*score, *(*live)->canary_score(), (*live)->info().version, options_.canary_margin);
  if (!result.status.ok()) result.refusal = kWorse;
}

void VersionLoader::Accept(const LoadAction& action, std::shared_ptr<const LoadedVersion> loaded, absl::Time start) {
  const uint64_t version = action.version.version;
  Model& model = models_[action.model];
  const uint64_t before = std::exchange(model.serving, version);
  model.failed.erase(version);
  if (options_.warm) options_.warm(loaded);
  const absl::Duration took = clock_.Now() - start;
  const ModelInfo& info = loaded->info();
  metrics_->CountLoad(action.model, "loaded", "");
  metrics_->ObserveLoadTime(action.model, took);
  metrics_->SetActive(action.model, version, info.step);
  table_.Publish(loaded);
  LogInfo("serving a new version", {{"model", action.model},
                                    {"version", version},
                                    {"before", before},
                                    {"accuracy", info.accuracy},
                                    {"digest", info.digest},
                                    {"load_time", took}});
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
                           .attempts = attempts,
                           .by_comparison = result.refusal == kWorse};

  metrics_->CountLoad(action.model, refused ? "refused" : "failed", result.refusal);
  table_.SetRefused(action.model, version, std::string(result.status.message()));
  LogError(refused ? "refused a version" : "could not load a version, will try again", {{"model", action.model},
                                                                                        {"version", version},
                                                                                        {"reason", result.refusal},
                                                                                        {"error", result.status},
                                                                                        {"serving", model.serving}});
}

}  // namespace millrace
