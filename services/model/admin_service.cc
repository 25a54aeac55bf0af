#include "services/model/admin_service.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/model/manifest.h"
#include "common/status_macros.h"
#include "services/model/repository.h"

namespace millrace {
namespace {

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* call = context->DefaultReactor();
  call->Finish(ToGrpcStatus(status));
  return call;
}

}  // namespace

AdminService::AdminService(const Options& options, const ServingTable& table, VersionLoader& loader)
    : repository_(options.repository), check_(options.token_file, options.open), table_(table), loader_(loader) {}

grpc::ServerUnaryReactor* AdminService::Pin(grpc::CallbackServerContext* context, const v1::PinRequest* request,
                                            v1::PinResponse* response) {
  absl::Status status = check_.Check(*context);
  if (status.ok()) status = PinVersion(*request, *response);
  return Finish(context, status);
}

grpc::ServerUnaryReactor* AdminService::Rollback(grpc::CallbackServerContext* context,
                                                 const v1::RollbackRequest* request, v1::RollbackResponse* response) {
  absl::Status status = check_.Check(*context);
  if (status.ok()) status = RollBack(*request, *response);
  return Finish(context, status);
}

absl::Status AdminService::CheckThere(const std::string& model, uint64_t version) const {
  if (table_.FindStandby(model, version) != nullptr) return absl::OkStatus();
  std::error_code error;
  if (std::filesystem::exists(VersionDirectory(repository_, model, version) / kManifestFile, error)) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("version ", version, " of model ", model, " is not in the repository"));
}

absl::Status AdminService::PinVersion(const v1::PinRequest& request, v1::PinResponse& response) {
  const absl::StatusOr<std::shared_ptr<const LoadedVersion>> found = table_.Find(request.model(), 0);
  std::string model = request.model().empty() ? std::string(ServingTable::kDefaultModel) : request.model();
  uint64_t serving = 0;
  if (found.ok()) {
    model = (*found)->info().model;
    serving = (*found)->info().version;
  } else if (table_.pinned(model) == 0) {  // else it is a pin that keeps all versions from serving
    return found.status();
  }
  if (request.version() != 0 && request.version() != serving) {
    MILLRACE_RETURN_IF_ERROR(CheckThere(model, request.version()));
  }
  loader_.Pin(model, request.version());
  LogInfo(request.version() == 0 ? "unpinned" : "pinned", {{"model", model}, {"version", request.version()}});
  response.set_model(model);
  response.set_serving(serving);
  return absl::OkStatus();
}

absl::Status AdminService::RollBack(const v1::RollbackRequest& request, v1::RollbackResponse& response) {
  MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> serving, table_.Find(request.model(), 0));
  const std::string& model = serving->info().model;
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<ServingTable::Account> accounts, table_.Accounts(model, 0));
  uint64_t served = 0, loaded = 0;
  for (const ServingTable::Account& account : accounts) {  // ascending
    if (account.version < serving->info().version) (account.served ? served : loaded) = account.version;
  }
  const uint64_t before = served != 0 ? served : loaded;
  if (before == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no version of model ", model, " before ", serving->info().version, " has been loaded here"));
  }
  const absl::Status there = CheckThere(model, before);
  if (!there.ok()) return absl::FailedPreconditionError(there.message());
  loader_.Pin(model, before);
  LogInfo("rolled back", {{"model", model}, {"from", serving->info().version}, {"to", before}});
  response.set_model(model);
  response.set_serving(serving->info().version);
  response.set_pinned(before);
  return absl::OkStatus();
}

}  // namespace millrace
