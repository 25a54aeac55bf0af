#include "services/cli/status_command.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/grpc_token.h"
#include "common/job_text.h"
#include "common/status_macros.h"
#include "millrace/v1/coordinator.grpc.pb.h"
#include "services/cli/output_directory.h"
#include "services/cli/predict_client.h"
#include "services/cli/shard_status.h"
#include "services/cli/status_format.h"

namespace millrace {
namespace {

using Credentials = std::shared_ptr<grpc::ChannelCredentials>;

constexpr absl::Duration kTimeout = absl::Seconds(3);
constexpr absl::Duration kShardTimeout = absl::Seconds(1);

absl::StatusOr<std::string> DescribeJob(const std::string& address, const Credentials& credentials) {
  const auto stub = v1::Coordinator::NewStub(MakeChannel(address, credentials));
  grpc::ClientContext context;
  SetDeadline(context, kTimeout);
  v1::JobStatus status;
  const grpc::Status result = stub->GetJobStatus(&context, {}, &status);
  if (!result.ok()) return FromGrpcStatus(result);
  return FormatJobStatus(status, AskShards(status, kShardTimeout, credentials));
}

absl::StatusOr<std::string> DescribeModels(const std::string& address, const Credentials& credentials) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::ListModelsResponse models,
                            PredictClient(address, credentials).ListModels(kTimeout));
  return FormatModels(models);
}

// A target may be either kind of service: one that is not a coordinator says UNIMPLEMENTED.
absl::StatusOr<std::string> DescribeAddress(const std::string& address, const Credentials& credentials = nullptr) {
  absl::StatusOr<std::string> text = DescribeJob(address, credentials);
  if (absl::IsUnimplemented(text.status())) text = DescribeModels(address, credentials);
  if (text.ok()) return text;
  return absl::Status(text.status().code(), absl::StrCat(address, ": ", text.status().message()));
}

absl::StatusOr<std::string> DescribeTarget(const StatusOptions& options) {
  Credentials credentials = options.target.credentials();
  if (!options.run_token_file.empty()) {
    MILLRACE_RETURN_IF_ERROR(CheckRunTokenFile(options.run_token_file, !options.target.tls.empty()));
    credentials = ShowToken(credentials, options.run_token_file);
  }
  return DescribeAddress(options.target.address, credentials);
}

absl::StatusOr<std::string> DescribeRun(const std::string& out) {
  MILLRACE_ASSIGN_OR_RETURN(const ClusterRecord record, ReadClusterRecord(out));
  std::string text;
  for (const std::string& address : {record.coordinator, record.model}) {
    if (address.empty()) continue;
    MILLRACE_ASSIGN_OR_RETURN(const std::string part, DescribeAddress(address));
    absl::StrAppend(&text, part);
  }
  if (text.empty()) return absl::UnavailableError(absl::StrCat("no run is going on in ", out));
  return text;
}

}  // namespace

void AddStatusFlags(CLI::App& app, StatusOptions& options) {
  AddTargetFlags(app, options.target,
                 "HOST:PORT or unix:PATH of a coordinator or model service, or the --out directory of a running train");
  app.add_option("--run-token-file", options.run_token_file,
                 "file with the token of the training run that the target belongs to; needs TLS");
}

int RunStatus(const StatusOptions& options) {
  const std::string& target = options.target.address;
  std::error_code error;
  const bool directory = std::filesystem::is_directory(target, error);
  if (!directory) {
    if (const std::optional<int> exit_code = RefuseTarget(options.target)) return *exit_code;
  }
  const absl::StatusOr<std::string> text = directory ? DescribeRun(target) : DescribeTarget(options);
  if (!text.ok()) {
    std::fprintf(stderr, "millrace: %s\n", std::string(text.status().message()).c_str());
    return ExitCodeFor(text.status());
  }
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

}  // namespace millrace
