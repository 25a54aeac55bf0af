#include "services/model/serving_table.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/strings.h"

namespace millrace {
namespace {

constexpr char kUnloaded[] = "unloaded by an operator";

VersionReport ReportOf(const LoadedVersion& version, VersionReport::State state) {
  return {.model = version.info().model,
          .version = version.info().version,
          .state = state,
          .reason = {},
          .accuracy = version.info().accuracy,
          .requests = version.requests()};
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
    return absl::NotFoundError(absl::StrCat("version ", version, " of model ", found->first, " is not loaded; version ",
                                            active->info().version, " serves"));
  }
  return active;
}

absl::Status ServingTable::NothingServes(std::string_view name, const Model* model) const {
  if (model != nullptr && model->unloaded) {
    return absl::UnavailableError(absl::StrCat("model ", ToAbsl(name), " was ", kUnloaded));
  }
  if (model != nullptr) {
    const bool refused = !model->candidates.empty() && !model->candidates.rbegin()->second.reason.empty();
    return absl::UnavailableError(
        absl::StrCat("no version of model ", ToAbsl(name), " serves yet",
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
  {
    MutexLock lock(&mutex_);
    Model& model = models_[version->info().model];
    if (model.unloaded) return false;
    model.candidates.erase(version->info().version);
    model.last.reset();
    Retire(model);
    model.retired.erase(version->info().version);  // of its earlier life, if it is loaded again
    model.accounts[version->info().version] = version->statistics();
    if (model.accounts.size() > kAccountsPerModelMax) model.accounts.erase(model.accounts.begin());
    model.serving.swap(version);  // what served goes after the lock
  }
  Changed();
  return true;
}

void ServingTable::Retire(Model& model) {
  if (model.serving != nullptr) model.retired[model.serving->info().version] = model.serving;
  std::erase_if(model.retired, [](const auto& retired) { return retired.second.expired(); });
}

absl::Status ServingTable::Unload(const std::string& name) {
  std::shared_ptr<const LoadedVersion> served;  // goes after the lock
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
    Retire(model);
    served = std::move(model.serving);
    model.serving = nullptr;
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

absl::StatusOr<std::vector<ServingTable::Account>> ServingTable::Accounts(std::string_view wanted,
                                                                          uint64_t version) const {
  MutexLock lock(&mutex_);
  std::vector<Account> accounts;
  for (const auto& [name, model] : models_) {
    if (!wanted.empty() && name != wanted) continue;
    for (const auto& [number, statistics] : model.accounts) {
      if (version == 0 || number == version) accounts.push_back({name, number, statistics});
    }
  }
  if (accounts.empty() && !wanted.empty()) {
    return absl::NotFoundError(
        version == 0 ? absl::StrCat("no version of model ", ToAbsl(wanted), " has served")
                     : absl::StrCat("there is no account of version ", version, " of model ", ToAbsl(wanted)));
  }
  return accounts;
}

void ServingTable::SetPinned(const std::string& model, uint64_t version) {
  {
    MutexLock lock(&mutex_);
    models_[model].pinned = version;
  }
  Changed();
}

uint64_t ServingTable::pinned(std::string_view model) const {
  MutexLock lock(&mutex_);
  const auto found = models_.find(model);
  return found == models_.end() ? 0 : found->second.pinned;
}

void ServingTable::SetLoading(const std::string& model, uint64_t version) {
  {
    MutexLock lock(&mutex_);
    models_[model].candidates[version] = {
        .model = model, .version = version, .state = VersionReport::State::kLoading, .reason = {}};
  }
  Changed();
}

void ServingTable::SetRefused(const std::string& model, uint64_t version, const std::string& reason) {
  {
    MutexLock lock(&mutex_);
    auto& candidates = models_[model].candidates;
    candidates[version] = {
        .model = model, .version = version, .state = VersionReport::State::kRefused, .reason = reason};
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
    if (model.serving != nullptr) reports.push_back(ReportOf(*model.serving, VersionReport::State::kServing));
    if (model.last) reports.push_back(*model.last);
    for (const auto& [version, retired] : model.retired) {
      if (model.last && model.last->version == version) continue;
      if (std::shared_ptr<const LoadedVersion> loaded = retired.lock()) {
        reports.push_back(ReportOf(*loaded, VersionReport::State::kRetired));
        alive.push_back(std::move(loaded));
      }
    }
    for (const auto& [version, report] : model.candidates) reports.push_back(report);
    for (auto report = reports.begin() + first; report != reports.end(); ++report) {
      report->pinned = report->version == model.pinned;
    }
    std::sort(reports.begin() + first, reports.end(),
              [](const VersionReport& a, const VersionReport& b) { return a.version > b.version; });
  }
  return reports;
}

}  // namespace millrace
