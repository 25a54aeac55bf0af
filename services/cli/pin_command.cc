#include "services/cli/pin_command.h"

#include <cstdio>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/bearer_token.h"
#include "common/command_line.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "services/cli/predict_client.h"

namespace millrace {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr absl::Duration kPollInterval = absl::Milliseconds(100);

using Stub = v1::ModelAdmin::Stub;

void AddCommonFlags(CLI::App& app, PinOptions& options) {
  AddTargetFlags(app, options.target, "HOST:PORT or unix:PATH of a model service");
  app.add_option("--model", options.model, "which model; default: the service's own");
  app.add_option("--token-file", options.token_file, "file with the service's --admin-token-file token");
  app.add_option("--timeout-seconds", options.timeout_seconds, "for the service to get there")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 3600.0));
}

template <typename Request, typename Response>
absl::StatusOr<Response> Call(const PinOptions& options,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                              const Request& request) {
  const auto stub = v1::ModelAdmin::NewStub(MakeChannel(options.target.address, options.target.credentials()));
  grpc::ClientContext context;
  SetDeadline(context, kCallTimeout);
  if (!options.token_file.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string token, ReadToken(options.token_file));
    context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
  }
  Response response;
  MILLRACE_RETURN_IF_ERROR(FromGrpcStatus((stub.get()->*method)(&context, request, &response)));
  return response;
}

// Until the version serves. FAILED_PRECONDITION with the reason if it is refused.
absl::Status AwaitServing(const PinOptions& options, const std::string& model, uint64_t version) {
  PredictClient client(options.target.address, options.target.credentials());
  const absl::Time deadline = absl::Now() + absl::Seconds(options.timeout_seconds);
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const v1::ListModelsResponse listing, client.ListModels(kCallTimeout));
    for (const v1::ModelVersionStatus& status : listing.versions()) {
      if (status.model() != model || status.version() != version) continue;
      if (status.state() == v1::ModelVersionStatus::STATE_SERVING) return absl::OkStatus();
      if (status.state() == v1::ModelVersionStatus::STATE_REFUSED) {
        return absl::FailedPreconditionError(absl::StrCat("version ", version, " is refused: ", status.reason()));
      }
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("version ", version, " does not serve yet"));
    }
    absl::SleepFor(kPollInterval);
  }
}

absl::StatusOr<std::string> Pin(const PinOptions& options) {
  v1::PinRequest request;
  request.set_model(options.model);
  request.set_version(options.version);
  MILLRACE_ASSIGN_OR_RETURN(const v1::PinResponse response, Call(options, &Stub::Pin, request));
  if (options.newest) return absl::StrCat(response.model(), " is not pinned; its newest good version serves");
  MILLRACE_RETURN_IF_ERROR(AwaitServing(options, response.model(), options.version));
  return absl::StrCat(response.model(), " is pinned to version ", options.version,
                      ", which serves (before: ", response.serving(), ")");
}

absl::StatusOr<std::string> RollBack(const PinOptions& options) {
  v1::RollbackRequest request;
  request.set_model(options.model);
  MILLRACE_ASSIGN_OR_RETURN(const v1::RollbackResponse response, Call(options, &Stub::Rollback, request));
  MILLRACE_RETURN_IF_ERROR(AwaitServing(options, response.model(), response.pinned()));
  return absl::StrCat(response.model(), " is rolled back from version ", response.serving(), " to ", response.pinned(),
                      ", and pinned to it (millrace pin --newest ends that)");
}

int Finish(const absl::StatusOr<std::string>& line) {
  if (line.ok()) {
    std::printf("%s\n", line->c_str());
    return kExitOk;
  }
  std::fprintf(stderr, "millrace: %s\n", std::string(line.status().message()).c_str());
  return kExitFailure;
}

}  // namespace

void AddPinFlags(CLI::App& app, PinOptions& options) {
  AddCommonFlags(app, options);
  CLI::Option_group* const which = app.add_option_group("which");
  which->add_option("--version", options.version, "that is to serve whatever is pushed")
      ->check(CLI::Range(uint64_t{1}, UINT64_MAX));
  which->add_flag("--newest", options.newest, "end the pin: the newest good version serves");
  which->require_option(1);
}

void AddRollbackFlags(CLI::App& app, PinOptions& options) { AddCommonFlags(app, options); }

int RunPin(const PinOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  return Finish(Pin(options));
}

int RunRollback(const PinOptions& options) {
  if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  return Finish(RollBack(options));
}

}  // namespace millrace
