// Keeps the serving table up to date with the repository.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "services/model/canary_set.h"
#include "services/model/janitor.h"
#include "services/model/model_metrics.h"
#include "services/model/predictor.h"
#include "services/model/repository.h"
#include "services/model/rollout.h"
#include "services/model/serving_table.h"
#include "services/model/shadow_runner.h"
#include "services/model/version_examiner.h"
#include "services/model/version_policy.h"

namespace millrace {

// Polls the repository, asks the version policy, loads off to the side, publishes or refuses, and follows rollouts to
// their end: a candidate is promoted or, by its verdict, refused; a newer one takes its place; a pin ends it. When
// there is nothing else to do it loads what is to stand by, as the table has room for it, and compares it with nothing.
// A failure of the storage is logged and waited out; what serves goes on serving.
//
// Threads: everything happens on one thread between Start and Stop, or on the caller's in PollOnce; never both at once.
class VersionLoader {
 public:
  struct Options {
    std::filesystem::path repository;
    absl::Duration poll_interval;
    // Called with a version before it is published, if set; may take its time.
    std::function<void(const std::shared_ptr<const LoadedVersion>&)> warm = nullptr;
    // By which a version that is to serve is compared with the one that does, unless it is pinned; none: it is not.
    std::optional<CanarySet> canary_set = std::nullopt;
    double canary_margin = 0.02;  // as CheckNotWorse takes it
    // How a version comes to serve in another's place, unless it is pinned: then at once.
    RolloutOptions rollout = {};
  };

  // The references must outlive the loader; `load` is called on the loader's thread.
  VersionLoader(Options options, LoadVersion load, ServingTable& table, std::shared_ptr<ModelMetrics> metrics,
                const Clock& clock);
  // Stops.
  ~VersionLoader();
  VersionLoader(const VersionLoader&) = delete;
  VersionLoader& operator=(const VersionLoader&) = delete;

  void Start();
  // Returns when a load under way has ended.
  void Stop();

  // Looks at the repository once and tries to load at most one version. True if it tried: there may be more to do.
  bool PollOnce();

  // Until it is unpinned (version 0) exactly this version of the model is to serve, older or newer than what does. One
  // on standby does at once, even if its files are gone; another is loaded and verified like any other, and what serves
  // goes on serving until it is ready, or for good if it is refused. Any thread; done at the next look, which comes at
  // once.
  void Pin(const std::string& model, uint64_t version);

  // Ends an unload of the model, forgets what was refused of it, and loads and verifies its newest version (the pinned
  // one, if one is) even if that is what serves; until then, and for good if it is refused, what serves goes on
  // serving. Any thread; done at the next look, which comes at once. `done` is called once, on the loader's thread or
  // before this returns, with OK when the version serves, or is tried as a candidate; else
  //   FAILED_PRECONDITION  it is refused, or the pinned version is not there, or the model has been unloaded meanwhile
  //   NOT_FOUND            the repository has no such model, or is not there
  //   RESOURCE_EXHAUSTED   kReloadsMax wait already
  //   UNAVAILABLE          the loader has stopped
  //   another code         the storage's
  // As ServingTable::Unload, and the loader looks at once.
  absl::Status Unload(const std::string& model);
  void Reload(const std::string& model, std::function<void(const absl::Status&)> done);
  static constexpr size_t kReloadsMax = 16;

  // How the last look at the repository went.
  absl::Status repository_status() const;

 private:
  struct Model {
    uint64_t serving = 0;
    std::shared_ptr<Rollout> rollout;
    AvailableVersion candidate;  // of the rollout
    uint64_t last_turn = 0;
    std::map<uint64_t, FailedLoad> failed;
  };

  struct PendingReload {
    std::string model;
    std::function<void(const absl::Status&)> done;
  };

  void Run();
  void LookNow();
  std::vector<PendingReload> TakeReloads();
  absl::Status ReloadNow(const std::string& model, const absl::Status& repository, std::vector<ModelState>& states);
  // What an operator's unload leaves behind here.
  void NoteUnload(const std::string& name, Model& model);
  // Follows a pin to a version on standby, unless the repository has other files of it.
  void ServeFromStandby(const std::string& name, const Model& model, const RepositoryListing& listing);
  // Acts on a pin or a verdict, if there is one.
  void SettleRollout(const std::string& name, Model& model);
  void NoteRepository(const absl::Status& status);
  std::vector<ModelState> Snapshot(const RepositoryListing& listing);
  absl::Status Load(const LoadAction& action);
  absl::Status Accept(const LoadAction& action, bool by_pin, std::shared_ptr<const LoadedVersion> loaded,
                      absl::Time start);
  absl::Status StartRollout(const LoadAction& action, const std::shared_ptr<const LoadedVersion>& loaded);
  void EndRollout(const std::string& name, const std::string& result, const std::string& reason);
  void RollBack(const std::string& name, const RolloutVerdict& verdict);
  // FAILED_PRECONDITION if the model has been unloaded meanwhile. `before`: the version that served.
  absl::Status Serve(const std::shared_ptr<const LoadedVersion>& version, uint64_t* before);
  // Of a version that was loaded for nothing: FAILED_PRECONDITION.
  absl::Status GiveUp(const std::string& model, uint64_t version, const std::string& why);
  void Refuse(const LoadAction& action, const VersionExaminer::Result& examined);

  const VersionExaminer examiner_;
  const Options options_;  // without the canary set, which is the examiner's
  ServingTable& table_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const Clock& clock_;

  // Of the loader's thread.
  std::map<std::string, Model> models_;
  uint64_t turns_ = 0;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool look_now_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<PendingReload> reloads_ ABSL_GUARDED_BY(mutex_);
  absl::Status repository_status_ ABSL_GUARDED_BY(mutex_) = absl::UnknownError("the repository has not been read yet");

  Janitor janitor_;
  const std::shared_ptr<ShadowRunner> shadow_;  // null without rollouts
  std::thread thread_;
};

}  // namespace millrace
