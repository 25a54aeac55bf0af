#include "services/model/repository_control.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

absl::Status CheckName(const std::string& model) {
  if (!model.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("the request names no model");
}

absl::Status CheckLoad(const inference::RepositoryModelLoadRequest& request) {
  MILLRACE_RETURN_IF_ERROR(CheckName(request.model_name()));
  for (const auto& [name, value] : request.parameters()) {
    if (name == "config" || absl::StartsWith(name, "file:")) {
      return absl::InvalidArgumentError(
          absl::StrCat("the parameter ", name, " is not taken: what is loaded is what the repository holds"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void RepositoryControl::Load(const inference::RepositoryModelLoadRequest& request,
                             std::function<void(const absl::Status&)> done) {
  if (const absl::Status fault = CheckLoad(request); !fault.ok()) return done(fault);
  LogInfo("loading again, as an operator asked", {{"model", request.model_name()}});
  loader_.Reload(request.model_name(), std::move(done));
}

absl::Status RepositoryControl::Unload(const inference::RepositoryModelUnloadRequest& request) {
  MILLRACE_RETURN_IF_ERROR(CheckName(request.model_name()));
  MILLRACE_RETURN_IF_ERROR(loader_.Unload(request.model_name()));
  LogInfo("unloaded, as an operator asked", {{"model", request.model_name()}});
  return absl::OkStatus();
}

}  // namespace millrace
