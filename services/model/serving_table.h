// Which version of each model answers, and what became of the others.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "services/model/loaded_version.h"

namespace millrace {

// One row of ListModels and of the status page.
struct VersionReport {
  enum class State { kLoading, kServing, kRetired, kRefused, kCandidate, kStandby };

  std::string model;
  uint64_t version = 0;
  State state = State::kLoading;
  std::string reason;   // of a refusal, or why an operator's doing keeps it from serving; of a candidate, how far it is
  double accuracy = 0;  // [0, 1]; 0 if not known
  std::optional<CanaryScore> canary_score = {};
  uint64_t requests = 0;       // for which this version was chosen, whatever became of them
  bool pinned = false;         // it is to serve whatever is pushed
  bool by_comparison = false;  // refused because another was better: a pin overrules it
};
std::string_view StateName(VersionReport::State state);  // "LOADING" ...

// Any thread. One mutex, held for a look-up and a reference count (tens of nanoseconds beside a forward pass of a
// hundred microseconds). Not std::atomic<std::shared_ptr>: in libstdc++ 12 that is a spin lock too, and one that
// ThreadSanitizer cannot see.
class ServingTable {
 public:
  // What a request that names no model means if several serve.
  static constexpr std::string_view kDefaultModel = "mnist";
  static constexpr size_t kReportsPerModelMax = 32;  // of refused versions; the newest stay

  // `standby_max`: of each model, how many versions stay loaded beside the one that serves.
  explicit ServingTable(size_t standby_max = 0) : standby_max_(standby_max) {}
  size_t standby_max() const { return standby_max_; }

  // `changed` is called after every change of a version's state or of a pin, by whoever made it, while no lock is held.
  // Before the first change only; may be left out.
  void OnChange(std::function<void()> changed) { changed_ = std::move(changed); }

  // The version for a request. `model` may be empty: the only one that serves, else kDefaultModel. `version` 0: the one
  // that serves; else that one, the candidate beside it or one on standby. UNAVAILABLE if nothing serves yet, or
  // nothing of this model, which is known to the repository, is pinned or was unloaded; NOT_FOUND for a model or
  // version that is not there.
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> Find(std::string_view model, uint64_t version) const;

  // By label: "stable", the version that serves, or "canary", the candidate. Errors as above; NOT_FOUND names the
  // labels that there are.
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> FindLabel(std::string_view model, std::string_view label) const;
  static constexpr std::string_view kStable = "stable";
  static constexpr std::string_view kCanary = "canary";

  // From now on `version` answers for its model; the one before goes on standby, unless none are kept or it is another
  // life of the same version: then it is retired. A retired version is unloaded with its last request. False if the
  // model has been unloaded meanwhile: nothing changes.
  bool Publish(std::shared_ptr<const LoadedVersion> version);

  // The version stays loaded beside the one that serves, after those on standby that have served. False if nothing
  // serves, because the model has been unloaded meanwhile: nothing changes.
  bool AddStandby(std::shared_ptr<const LoadedVersion> version);
  // If the version is on standby; else null.
  std::shared_ptr<const LoadedVersion> FindStandby(std::string_view model, uint64_t version) const;
  std::vector<uint64_t> standby_versions(std::string_view model) const;

  // From now on nothing answers for the model, and nothing is published for it, until EndUnload; what serves or is on
  // standby is retired. NOT_FOUND for a model of which nothing is known.
  absl::Status Unload(const std::string& model);
  void EndUnload(const std::string& model);
  bool unloaded(std::string_view model) const;

  // The rollout's candidate is tried beside the version that serves its model; a candidate before it is given up. False
  // if none serves, because the model has been unloaded meanwhile: nothing changes.
  bool StartRollout(const std::shared_ptr<Rollout>& rollout);
  // The candidate is given up, if there is one; it is unloaded with its last request.
  void EndRollout(const std::string& model);

  // What the loader is to make of the model: 0, the newest, until told otherwise. A refusal that a pin overrules is
  // over.
  void SetPinned(const std::string& model, uint64_t version);
  uint64_t pinned(std::string_view model) const;
  std::map<std::string, uint64_t> pins() const;  // by model

  void SetLoading(const std::string& model, uint64_t version);
  // `by_comparison`: as in VersionReport.
  void SetRefused(const std::string& model, uint64_t version, const std::string& reason, bool by_comparison = false);
  // A version that was loading or refused is gone from the repository.
  void Forget(const std::string& model, uint64_t version);

  bool serves_any() const;
  bool serves(std::string_view model) const;
  std::vector<std::string> serving_models() const;
  // By model, newest version first. Retired versions are there until they are unloaded.
  std::vector<VersionReport> Report() const;

  struct Account {
    std::string model;
    uint64_t version = 0;
    std::shared_ptr<const VersionStatistics> statistics;
    bool served = false;  // requests that name no version
  };
  static constexpr size_t kAccountsPerModelMax = 32;  // the newest; of versions that are loaded or were
  // By model, then version. Empty name: of all models; version 0: all of the model's. NOT_FOUND if there is none.
  absl::StatusOr<std::vector<Account>> Accounts(std::string_view model, uint64_t version) const;

 private:
  using Versions = std::vector<std::shared_ptr<const LoadedVersion>>;

  struct Model {
    std::shared_ptr<const LoadedVersion> serving;
    Versions standby;  // what served last first, then what never did
    uint64_t pinned = 0;
    bool unloaded = false;
    std::optional<VersionReport> last;  // of an unloaded model: what served
    std::map<uint64_t, std::weak_ptr<const LoadedVersion>> retired;
    std::map<uint64_t, VersionReport> candidates;  // loading or refused
    std::map<uint64_t, Account> accounts;
  };

  static void GiveUpCandidate(Model& model);
  static void Open(Model& model, const LoadedVersion& version, bool serves);
  // What serves, if anything, goes on standby.
  static void StandDown(Model& model);
  // Retires, of what is on standby, every life of this version and all but the last `standby_max`. Returns them, for
  // their references to go after the lock.
  static Versions Retire(Model& model, uint64_t version, size_t standby_max);
  std::string Serving() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status NothingServes(std::string_view name, const Model* model) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Changed() const;

  std::function<void()> changed_ = nullptr;
  const size_t standby_max_;
  mutable Mutex mutex_;
  std::map<std::string, Model, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
