#include "services/model/serving_table.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/planted_bug.h"
#include "common/status_macros.h"
#include "common/strings.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

constexpr char kUnloaded[] = "unloaded by an operator";

VersionReport ReportOf(const LoadedVersion& version, VersionReport::State state) {
  return {.model = version.info().model,
          .version = version.info().version,
          .state = state,
          .reason = {},
          .accuracy = version.info().accuracy,
          .canary_score = version.canary_score(),
          .requests = version.requests()};
}

std::shared_ptr<const LoadedVersion> FindIn(const std::vector<std::shared_ptr<const LoadedVersion>>& versions,
                                            uint64_t number) {
  const auto found = std::ranges::find(versions, number, [](const auto& version) { return version->info().version; });
  return found == versions.end() ? nullptr : *found;
}

}  // namespace

std::string_view StateName(VersionReport::State state) {
  switch (state) {
    case VersionReport::State::kLoading:
      return "LOADING";
    case VersionReport::State::kServing:
      return "SERVING";
    case VersionReport::State::kRetired:
      return "RETIRED";
    case VersionReport::State::kRefused:
      return "REFUSED";
    case VersionReport::State::kCandidate:
      return "CANDIDATE";
    case VersionReport::State::kStandby:
      return "STANDBY";
  }
  return "UNKNOWN";
}

absl::StatusOr<std::shared_ptr<const LoadedVersion>> ServingTable::Find(std::string_view name, uint64_t version) const {
  MutexLock lock(&mutex_);
  auto found = models_.end();
  if (name.empty()) {
    size_t serving = 0;
    for (auto model = models_.begin(); model != models_.end(); ++model) {
      if (model->second.serving == nullptr) continue;
      ++serving;
      found = model;
    }
    name = kDefaultModel;
    if (serving != 1) found = models_.find(name);
  } else {
    found = models_.find(name);
  }
  if (found == models_.end() || found->second.serving == nullptr) {
    return NothingServes(name, found == models_.end() ? nullptr : &found->second);
  }
  const std::shared_ptr<const LoadedVersion>& active = found->second.serving;
  if (version != 0 && version != active->info().version) {
    const std::shared_ptr<Rollout> rollout = active->rollout();
    if (rollout != nullptr && rollout->candidate()->info().version == version) return rollout->candidate();
    if (const auto standby = FindIn(found->second.standby, version)) return standby;
    return absl::NotFoundError(absl::StrCat("version ", version, " of model ", found->first, " is not loaded; version ",
                                            active->info().version, " serves"));
  }
  return active;
}

absl::StatusOr<std::shared_ptr<const LoadedVersion>> ServingTable::FindLabel(std::string_view name,
                                                                             std::string_view label) const {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const LoadedVersion> stable, Find(name, 0));
  if (label == kStable) return stable;
  const std::shared_ptr<Rollout> rollout = stable->rollout();
  if (label == kCanary && rollout != nullptr) return rollout->candidate();
  const ModelInfo& info = stable->info();
  return absl::NotFoundError(absl::StrCat(
      "no version of model ", info.model, " is labelled '", ToAbsl(label), "'; there is stable (version ", info.version,
      ")", rollout == nullptr ? "" : absl::StrCat(" and canary (version ", rollout->candidate()->info().version, ")")));
}

absl::Status ServingTable::NothingServes(std::string_view name, const Model* model) const {
  if (model != nullptr && model->unloaded) {
    return absl::UnavailableError(absl::StrCat("model ", ToAbsl(name), " was ", kUnloaded));
  }
  if (model != nullptr) {
    const bool refused = !model->candidates.empty() && !model->candidates.rbegin()->second.reason.empty();
    return absl::UnavailableError(
        absl::StrCat("no version of model ", ToAbsl(name), " serves yet",
                     model->pinned == 0 ? "" : absl::StrCat("; version ", model->pinned, " is pinned"),
                     refused ? absl::StrCat("; version ", model->candidates.rbegin()->first,
                                            " was refused: ", model->candidates.rbegin()->second.reason)
                             : ""));
  }
  const std::string serving = Serving();
  if (serving.empty()) return absl::UnavailableError("no model has been loaded yet");
  return absl::NotFoundError(absl::StrCat("there is no model ", ToAbsl(name), "; serving: ", serving));
}

std::string ServingTable::Serving() const {
  std::string names;
  for (const auto& [name, model] : models_) {
    if (model.serving != nullptr) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return names;
}

void ServingTable::Changed() const {
  if (changed_) changed_();
}

bool ServingTable::Publish(std::shared_ptr<const LoadedVersion> version) {
  Versions retired;
  {
    MutexLock lock(&mutex_);
    Model& model = models_[version->info().model];
    if (model.unloaded) return false;
    model.last.reset();
    GiveUpCandidate(model);
    std::erase(model.standby, version);
    StandDown(model);
    retired = Retire(model, version->info().version, standby_max_);
    Open(model, *version, true);
    if constexpr (kPlantedBug == PlantedBug::kLeakedVersion) new std::shared_ptr(version);
    model.serving = std::move(version);
  }
  Changed();
  return true;
}

void ServingTable::StandDown(Model& model) {
  if (model.serving != nullptr) model.standby.insert(model.standby.begin(), std::move(model.serving));
  model.serving = nullptr;
}

ServingTable::Versions ServingTable::Retire(Model& model, uint64_t version, size_t standby_max) {
  Versions kept, retired;
  for (std::shared_ptr<const LoadedVersion>& standby : model.standby) {
    const bool keep = standby->info().version != version && kept.size() < standby_max;
    (keep ? kept : retired).push_back(std::move(standby));
  }
  model.standby = std::move(kept);
  for (const auto& gone : retired) model.retired[gone->info().version] = gone;
  return retired;
}

bool ServingTable::AddStandby(std::shared_ptr<const LoadedVersion> version) {
  Versions retired;
  {
    MutexLock lock(&mutex_);
    Model& model = models_[version->info().model];
    if (model.serving == nullptr) return false;
    Open(model, *version, false);
    model.standby.push_back(std::move(version));
    retired = Retire(model, 0, standby_max_);
  }
  Changed();
  return true;
}

std::vector<uint64_t> ServingTable::standby_versions(std::string_view name) const {
  MutexLock lock(&mutex_);
  std::vector<uint64_t> versions;
  if (const auto found = models_.find(name); found != models_.end()) {
    for (const auto& version : found->second.standby) versions.push_back(version->info().version);
  }
  return versions;
}

std::shared_ptr<const LoadedVersion> ServingTable::FindStandby(std::string_view name, uint64_t version) const {
  MutexLock lock(&mutex_);
  const auto found = models_.find(name);
  return found == models_.end() ? nullptr : FindIn(found->second.standby, version);
}

absl::Status ServingTable::Unload(const std::string& name) {
  Versions retired;
  {
    MutexLock lock(&mutex_);
    const auto found = models_.find(name);
    if (found == models_.end()) return absl::NotFoundError(absl::StrCat("there is no model ", name));
    Model& model = found->second;
    model.unloaded = true;
    if (model.serving != nullptr) {
      model.last = ReportOf(*model.serving, VersionReport::State::kRetired);
      model.last->reason = kUnloaded;
    }
    GiveUpCandidate(model);
    StandDown(model);
    retired = Retire(model, 0, 0);
  }
  Changed();
  return absl::OkStatus();
}

void ServingTable::EndUnload(const std::string& name) {
  MutexLock lock(&mutex_);
  if (const auto found = models_.find(name); found != models_.end()) found->second.unloaded = false;
}

bool ServingTable::unloaded(std::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = models_.find(name);
  return found != models_.end() && found->second.unloaded;
}

bool ServingTable::StartRollout(const std::shared_ptr<Rollout>& rollout) {
  const LoadedVersion& candidate = *rollout->candidate();
  Versions retired;
  {
    MutexLock lock(&mutex_);
    Model& model = models_[candidate.info().model];
    if (model.serving == nullptr) return false;
    GiveUpCandidate(model);
    retired = Retire(model, candidate.info().version, standby_max_);
    Open(model, candidate, false);
    model.serving->SetRollout(rollout);
  }
  Changed();
  return true;
}

void ServingTable::EndRollout(const std::string& model) {
  {
    MutexLock lock(&mutex_);
    GiveUpCandidate(models_[model]);
  }
  Changed();
}

void ServingTable::GiveUpCandidate(Model& model) {
  const std::shared_ptr<Rollout> rollout = model.serving == nullptr ? nullptr : model.serving->rollout();
  if (rollout == nullptr) return;
  const uint64_t version = rollout->candidate()->info().version;
  model.serving->SetRollout(nullptr);
  model.accounts.erase(version);
  model.retired[version] = rollout->candidate();
}

void ServingTable::Open(Model& model, const LoadedVersion& version, bool serves) {
  const uint64_t number = version.info().version;
  model.candidates.erase(number);
  model.retired.erase(number);  // of its first life, if it is loaded again, or of its time as a candidate
  std::erase_if(model.retired, [](const auto& retired) { return retired.second.expired(); });
  Account& account = model.accounts[number];
  account = {.model = version.info().model,
             .version = number,
             .statistics = version.statistics(),
             .served = account.served || serves};
  if (model.accounts.size() > kAccountsPerModelMax) model.accounts.erase(model.accounts.begin());
}

absl::StatusOr<std::vector<ServingTable::Account>> ServingTable::Accounts(std::string_view wanted,
                                                                          uint64_t version) const {
  MutexLock lock(&mutex_);
  std::vector<Account> accounts;
  for (const auto& [name, model] : models_) {
    if (!wanted.empty() && name != wanted) continue;
    for (const auto& [number, account] : model.accounts) {
      if (version == 0 || number == version) accounts.push_back(account);
    }
  }
  if (accounts.empty() && !wanted.empty()) {
    return absl::NotFoundError(
        version == 0 ? absl::StrCat("no version of model ", ToAbsl(wanted), " has been loaded")
                     : absl::StrCat("there is no account of version ", version, " of model ", ToAbsl(wanted)));
  }
  return accounts;
}

void ServingTable::SetPinned(const std::string& model, uint64_t version) {
  {
    MutexLock lock(&mutex_);
    Model& pinned = models_[model];
    pinned.pinned = version;
    for (auto& [number, report] : pinned.candidates) {
      if (!report.by_comparison) continue;
      report.state = number == version ? VersionReport::State::kLoading : VersionReport::State::kRefused;
    }
  }
  Changed();
}

uint64_t ServingTable::pinned(std::string_view model) const {
  MutexLock lock(&mutex_);
  const auto found = models_.find(model);
  return found == models_.end() ? 0 : found->second.pinned;
}

std::map<std::string, uint64_t> ServingTable::pins() const {
  MutexLock lock(&mutex_);
  std::map<std::string, uint64_t> pins;
  for (const auto& [name, model] : models_) {
    if (model.pinned != 0) pins[name] = model.pinned;
  }
  return pins;
}

void ServingTable::SetLoading(const std::string& model, uint64_t version) {
  {
    MutexLock lock(&mutex_);
    models_[model].candidates[version] = {
        .model = model, .version = version, .state = VersionReport::State::kLoading, .reason = {}};
  }
  Changed();
}

void ServingTable::SetRefused(const std::string& model, uint64_t version, const std::string& reason,
                              bool by_comparison) {
  {
    MutexLock lock(&mutex_);
    models_[model].retired.erase(version);
    auto& candidates = models_[model].candidates;
    candidates[version] = {.model = model,
                           .version = version,
                           .state = VersionReport::State::kRefused,
                           .reason = reason,
                           .by_comparison = by_comparison};
    if (candidates.size() > kReportsPerModelMax) candidates.erase(candidates.begin());
  }
  Changed();
}

void ServingTable::Forget(const std::string& model, uint64_t version) {
  {
    MutexLock lock(&mutex_);
    if (const auto found = models_.find(model); found != models_.end()) found->second.candidates.erase(version);
  }
  Changed();
}

bool ServingTable::serves_any() const {
  MutexLock lock(&mutex_);
  return std::any_of(models_.begin(), models_.end(), [](const auto& model) { return model.second.serving != nullptr; });
}

bool ServingTable::serves(std::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = models_.find(name);
  return found != models_.end() && found->second.serving != nullptr;
}

std::vector<std::string> ServingTable::serving_models() const {
  MutexLock lock(&mutex_);
  std::vector<std::string> names;
  for (const auto& [name, model] : models_) {
    if (model.serving != nullptr) names.push_back(name);
  }
  return names;
}

std::vector<VersionReport> ServingTable::Report() const {
  // Declared first, so that a reference that turns out to be the last one goes after the lock.
  std::vector<std::shared_ptr<const LoadedVersion>> alive;
  std::vector<VersionReport> reports;
  MutexLock lock(&mutex_);
  for (const auto& [name, model] : models_) {
    const auto first = static_cast<std::ptrdiff_t>(reports.size());
    if (model.serving != nullptr) {
      reports.push_back(ReportOf(*model.serving, VersionReport::State::kServing));
      if (const std::shared_ptr<Rollout> rollout = model.serving->rollout()) {
        reports.push_back(ReportOf(*rollout->candidate(), VersionReport::State::kCandidate));
        reports.back().reason = rollout->Progress();
      }
    }
    for (const auto& standby : model.standby) {
      reports.push_back(ReportOf(*standby, VersionReport::State::kStandby));
    }
    if (model.last) reports.push_back(*model.last);
    for (const auto& [version, retired] : model.retired) {
      if (model.last && model.last->version == version) continue;
      if (std::shared_ptr<const LoadedVersion> loaded = retired.lock()) {
        reports.push_back(ReportOf(*loaded, VersionReport::State::kRetired));
        alive.push_back(std::move(loaded));
      }
    }
    for (const auto& [version, report] : model.candidates) {
      const auto loaded = std::find_if(reports.begin() + first, reports.end(), [&](const VersionReport& other) {
        return other.version == version &&
               (other.state == VersionReport::State::kServing || other.state == VersionReport::State::kStandby);
      });
      if (loaded != reports.end()) {
        loaded->reason = report.reason;  // of a load of it that was refused
      } else {
        reports.push_back(report);
      }
    }
    bool pin_is_there = model.pinned == 0;
    for (auto report = reports.begin() + first; report != reports.end(); ++report) {
      report->pinned = report->version == model.pinned;
      pin_is_there = pin_is_there || report->pinned;
    }
    if (!pin_is_there) {
      reports.push_back({.model = name, .version = model.pinned, .reason = "not loaded yet", .pinned = true});
    }
    std::sort(reports.begin() + first, reports.end(),
              [](const VersionReport& a, const VersionReport& b) { return a.version > b.version; });
  }
  return reports;
}

}  // namespace millrace
